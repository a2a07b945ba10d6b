-- description: How the render jobs of a day went: jobs, frames, failures, times, memory, waiting and retries.
-- grain: event_date, show, sequence
-- inputs: silver_render_stats_summary
-- period: day
-- column event_date: day of the summaries, in UTC; unit date
-- column show: show of the scope, NULL where the event names none; unit text
-- column sequence: sequence of the scope, NULL where the event names none; unit text
-- column total_jobs: job summaries of any status; unit count
-- column success_count: summaries with status success; unit count
-- column error_count: summaries with status error; unit count
-- column success_rate_pct: 100 * success_count / total_jobs; unit percent
-- column total_frames: frames of all jobs, NULL where no job reports them; unit count
-- column total_failed_frames: failed frames of all jobs, NULL where no job reports them; unit count
-- column frame_success_rate_pct: 100 * (total_frames - total_failed_frames) / total_frames, NULL without
--   frames; unit percent
-- column avg_render_time_s: mean render time of a frame, that is the jobs' avg_render_time_s weighted by
--   frame_count over the jobs that report both; unit s
-- column p90_frame_time_s: exact 0.9 quantile (interpolated) over the jobs of each job's own p90 frame time;
--   it is not the p90 over all frames, which summaries cannot give; unit s
-- column total_cpu_hours: CPU time of all jobs, NULL where no job reports it; unit h
-- column peak_memory_gb: largest peak of any job; unit GB
-- column avg_queue_wait_s: mean wait in the queue over the jobs that report one; unit s
-- column total_retries: frame retries of all jobs, NULL where no job reports them; unit count
SELECT
    event_date,
    "show",
    sequence,
    COUNT(*) AS total_jobs,
    COUNT(*) FILTER (WHERE status = 'success') AS success_count,
    COUNT(*) FILTER (WHERE status = 'error') AS error_count,
    100 * COUNT(*) FILTER (WHERE status = 'success') / NULLIF(COUNT(*), 0) AS success_rate_pct,
    TRY_CAST(SUM(frame_count) AS BIGINT) AS total_frames,
    TRY_CAST(SUM(failed_frames) AS BIGINT) AS total_failed_frames,
    100 * (SUM(frame_count) - SUM(failed_frames)) / NULLIF(SUM(frame_count), 0) AS frame_success_rate_pct,
    SUM(CAST(frame_count AS DOUBLE) * avg_render_time_s)
        / NULLIF(SUM(frame_count) FILTER (WHERE avg_render_time_s IS NOT NULL), 0) AS avg_render_time_s,
    quantile_cont(CAST(frame_time_p90_ms AS DOUBLE), 0.9) / 1000 AS p90_frame_time_s,
    SUM(total_cpu_hours) AS total_cpu_hours,
    MAX(peak_memory_gb) AS peak_memory_gb,
    AVG(queue_wait_ms) / 1000 AS avg_queue_wait_s,
    TRY_CAST(SUM(retry_count) AS BIGINT) AS total_retries
FROM silver_render_stats_summary
GROUP BY event_date, "show", sequence
