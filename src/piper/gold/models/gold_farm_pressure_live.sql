-- description: How loaded the render farm was in the last 48 hours, in buckets of 5 minutes. Averages, peaks and
--   totals are over success and info snapshots only: the counters of an error snapshot are zero placeholders,
--   not measurements. A bucket without snapshots has no row.
-- grain: bucket_start
-- inputs: silver_tractor_farm_snapshot
-- period: live
-- bucket: 5 m
-- window: 48 h
-- column bucket_start: start of the 5 minutes of the snapshots, in UTC; unit time
-- column snapshot_count: snapshots of any status; unit count
-- column error_snapshot_count: snapshots with status error; unit count
-- column avg_active_jobs: mean of running_jobs; unit count
-- column avg_waiting_jobs: mean of waiting_jobs; unit count
-- column peak_waiting_jobs: largest waiting_jobs; unit count
-- column avg_active_blades: mean of active_blades; unit count
-- column total_blades: largest total_blades; unit count
-- column avg_slot_utilisation_pct: 100 * sum of busy_slots / sum of total_slots over the snapshots that
--   report both, NULL without slots; unit percent
-- column peak_errored_jobs: largest errored_jobs; unit count
WITH snapshots AS (
    SELECT *, status IN ('success', 'info') AS is_measured
    FROM silver_tractor_farm_snapshot
)

SELECT
    time_bucket(INTERVAL 5 MINUTE, occurred_at_utc) AS bucket_start,
    COUNT(*) AS snapshot_count,
    COUNT(*) FILTER (WHERE status = 'error') AS error_snapshot_count,
    AVG(running_jobs) FILTER (WHERE is_measured) AS avg_active_jobs,
    AVG(waiting_jobs) FILTER (WHERE is_measured) AS avg_waiting_jobs,
    MAX(waiting_jobs) FILTER (WHERE is_measured) AS peak_waiting_jobs,
    AVG(active_blades) FILTER (WHERE is_measured) AS avg_active_blades,
    MAX(total_blades) FILTER (WHERE is_measured) AS total_blades,
    100 * SUM(busy_slots) FILTER (WHERE is_measured AND total_slots IS NOT NULL)
        / NULLIF(SUM(total_slots) FILTER (WHERE is_measured AND busy_slots IS NOT NULL), 0)
            AS avg_slot_utilisation_pct,
    MAX(errored_jobs) FILTER (WHERE is_measured) AS peak_errored_jobs
FROM snapshots
GROUP BY bucket_start
