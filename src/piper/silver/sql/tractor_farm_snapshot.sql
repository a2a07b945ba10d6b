-- description: the farm's counters at one moment
-- grain: event_id of tractor.farm.snapshot
-- inputs: fresh
-- notes: the counters of a snapshot with status error are zero placeholders
WITH fields AS (
    SELECT
        *,
        from_json(payload, '{"engine_url":"VARCHAR","running_jobs":"VARCHAR","active_jobs":"VARCHAR","waiting_jobs":"VARCHAR","errored_jobs":"VARCHAR","busy_slots":"VARCHAR","total_slots":"VARCHAR","active_blades":"VARCHAR","total_blades":"VARCHAR","snapshot_duration_ms":"VARCHAR","duration_ms":"VARCHAR"}') AS p,
        from_json(metrics, '{"duration_ms":"VARCHAR","launch_duration_ms":"VARCHAR","snapshot_duration_ms":"VARCHAR"}') AS m
    FROM fresh
    WHERE dataset = 'tractor_farm_snapshot'
)

SELECT
    event_id,
    occurred_at_utc,
    event_date,
    status,
    host_hostname AS hostname,
    host_user AS username,
    p.engine_url AS engine_url,
    to_bigint(coalesce(p.running_jobs, p.active_jobs)) AS running_jobs,
    to_bigint(p.waiting_jobs) AS waiting_jobs,
    to_bigint(p.errored_jobs) AS errored_jobs,
    to_bigint(p.busy_slots) AS busy_slots,
    to_bigint(p.total_slots) AS total_slots,
    to_bigint(p.active_blades) AS active_blades,
    to_bigint(p.total_blades) AS total_blades,
    to_bigint(
        coalesce(
            m.snapshot_duration_ms, p.snapshot_duration_ms,
            m.duration_ms, m.launch_duration_ms, p.duration_ms, event_duration_ms
        )
    ) AS snapshot_duration_ms,
    error_code,
    error_message,
    commit_seq
FROM fields
