-- description: How loaded the render farm was. Averages, peaks and totals are over success and info snapshots
--   only: the counters of an error snapshot are zero placeholders, not measurements.
-- grain: event_date
-- inputs: silver_tractor_farm_snapshot
-- period: day
-- column event_date: day of the snapshots, in UTC; unit date
-- column snapshot_count: snapshots of any status; unit count
-- column error_snapshot_count: snapshots with status error; unit count
-- column avg_active_jobs: mean of running_jobs; unit count
-- column peak_active_jobs: largest running_jobs; unit count
-- column avg_waiting_jobs: mean of waiting_jobs; unit count
-- column peak_waiting_jobs: largest waiting_jobs; unit count
-- column avg_active_blades: mean of active_blades; unit count
-- column peak_active_blades: largest active_blades; unit count
-- column total_blades: largest total_blades of the day; unit count
-- column avg_slot_utilisation_pct: 100 * sum of busy_slots / sum of total_slots over the snapshots that
--   report both, NULL without slots; unit percent
-- column peak_slot_utilisation_pct: largest 100 * busy_slots / total_slots of one snapshot; unit percent
-- column peak_errored_jobs: largest errored_jobs; unit count
WITH snapshots AS (
    SELECT *, status IN ('success', 'info') AS is_measured
    FROM silver_tractor_farm_snapshot
)

SELECT
    event_date,
    COUNT(*) AS snapshot_count,
    COUNT(*) FILTER (WHERE status = 'error') AS error_snapshot_count,
    AVG(running_jobs) FILTER (WHERE is_measured) AS avg_active_jobs,
    MAX(running_jobs) FILTER (WHERE is_measured) AS peak_active_jobs,
    AVG(waiting_jobs) FILTER (WHERE is_measured) AS avg_waiting_jobs,
    MAX(waiting_jobs) FILTER (WHERE is_measured) AS peak_waiting_jobs,
    AVG(active_blades) FILTER (WHERE is_measured) AS avg_active_blades,
    MAX(active_blades) FILTER (WHERE is_measured) AS peak_active_blades,
    MAX(total_blades) FILTER (WHERE is_measured) AS total_blades,
    100 * SUM(busy_slots) FILTER (WHERE is_measured AND total_slots IS NOT NULL)
        / NULLIF(SUM(total_slots) FILTER (WHERE is_measured AND busy_slots IS NOT NULL), 0)
            AS avg_slot_utilisation_pct,
    MAX(100 * CAST(busy_slots AS DOUBLE) / NULLIF(total_slots, 0)) FILTER (WHERE is_measured)
        AS peak_slot_utilisation_pct,
    MAX(errored_jobs) FILTER (WHERE is_measured) AS peak_errored_jobs
FROM snapshots
GROUP BY event_date
