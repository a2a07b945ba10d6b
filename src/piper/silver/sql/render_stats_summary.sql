-- description: what a finished render job cost
-- grain: event_id of render.stats.summary
-- inputs: fresh
WITH fields AS (
    SELECT
        *,
        from_json(payload, '{"job_id":"VARCHAR","renderer":"VARCHAR","service":"VARCHAR","total_frames":"VARCHAR","frame_count":"VARCHAR","failed_frames":"VARCHAR","frame_time_p50_ms":"VARCHAR","frame_time_p90_ms":"VARCHAR","avg_render_time_s":"VARCHAR","total_cpu_hours":"VARCHAR","memory_peak_gb":"VARCHAR","retry_count_total":"VARCHAR","queue_wait_ms":"VARCHAR"}') AS p,
        from_json(metrics, '{"frame_time_p50_ms":"VARCHAR","frame_time_p90_ms":"VARCHAR","avg_render_time_s":"VARCHAR","total_cpu_hours":"VARCHAR","peak_memory_gb":"VARCHAR","queue_wait_ms":"VARCHAR"}') AS m
    FROM fresh
    WHERE dataset = 'render_stats_summary'
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
    p.renderer AS renderer,
    p.service AS service,
    to_bigint(coalesce(p.total_frames, p.frame_count)) AS frame_count,
    to_bigint(p.failed_frames) AS failed_frames,
    to_double(coalesce(p.frame_time_p50_ms, m.frame_time_p50_ms)) AS frame_time_p50_ms,
    to_double(coalesce(p.frame_time_p90_ms, m.frame_time_p90_ms)) AS frame_time_p90_ms,
    to_double(coalesce(p.avg_render_time_s, m.avg_render_time_s)) AS avg_render_time_s,
    to_double(coalesce(p.total_cpu_hours, m.total_cpu_hours)) AS total_cpu_hours,
    to_double(coalesce(p.memory_peak_gb, m.peak_memory_gb)) AS peak_memory_gb,
    to_bigint(p.retry_count_total) AS retry_count,
    to_bigint(coalesce(p.queue_wait_ms, m.queue_wait_ms)) AS queue_wait_ms,
    error_code,
    error_message,
    commit_seq
FROM fields
