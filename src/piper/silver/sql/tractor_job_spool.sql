-- description: jobs handed to the render farm
-- grain: event_id of tractor.job.spool
-- inputs: fresh
WITH fields AS (
    SELECT
        *,
        from_json(payload, '{"job_id":"VARCHAR","job_title":"VARCHAR","engine_url":"VARCHAR","service":"VARCHAR","renderer":"VARCHAR","priority":"VARCHAR","frame_start":"VARCHAR","frame_end":"VARCHAR","frame_step":"VARCHAR","tile_count":"VARCHAR","blade_count":"VARCHAR","spool_duration_ms":"VARCHAR","duration_ms":"VARCHAR"}') AS p,
        from_json(metrics, '{"duration_ms":"VARCHAR","launch_duration_ms":"VARCHAR","spool_duration_ms":"VARCHAR","blade_count":"VARCHAR"}') AS m
    FROM fresh
    WHERE dataset = 'tractor_job_spool'
)

SELECT
    event_id,
    occurred_at_utc,
    event_date,
    status,
    host_hostname AS hostname,
    host_user AS username,
    scope_show AS show,
    scope_sequence AS sequence,
    scope_shot AS shot,
    p.job_id AS job_id,
    p.job_title AS job_title,
    p.engine_url AS engine_url,
    p.service AS service,
    p.renderer AS renderer,
    to_double(p.priority) AS priority,
    to_bigint(p.frame_start) AS frame_start,
    to_bigint(p.frame_end) AS frame_end,
    to_bigint(p.frame_step) AS frame_step,
    to_bigint(p.tile_count) AS tile_count,
    to_bigint(coalesce(p.blade_count, m.blade_count)) AS blade_count,
    to_bigint(
        coalesce(
            m.spool_duration_ms, p.spool_duration_ms,
            m.duration_ms, m.launch_duration_ms, p.duration_ms, event_duration_ms
        )
    ) AS spool_duration_ms,
    error_code,
    error_message,
    commit_seq
FROM fields
