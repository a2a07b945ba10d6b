-- description: How often each artist tool was used, how often it worked, how long it took and for how many
--   people.
-- grain: event_date, event_type
-- inputs: silver_tool_events
-- period: day
-- column event_date: day of the invocations, in UTC; unit date
-- column event_type: the tool, one of the eight tool event types; unit text
-- column total_invocations: invocations of any status; unit count
-- column success_count: invocations with status success; unit count
-- column error_count: invocations with status error; unit count
-- column success_rate_pct: 100 * success_count / total_invocations; unit percent
-- column avg_duration_ms: mean duration of the invocations that report one, of any status; unit ms
-- column p95_duration_ms: exact 0.95 quantile (interpolated) of the same durations; unit ms
-- column active_users: distinct user names; unit count
SELECT
    event_date,
    event_type,
    COUNT(*) AS total_invocations,
    COUNT(*) FILTER (WHERE status = 'success') AS success_count,
    COUNT(*) FILTER (WHERE status = 'error') AS error_count,
    100 * COUNT(*) FILTER (WHERE status = 'success') / NULLIF(COUNT(*), 0) AS success_rate_pct,
    AVG(duration_ms) AS avg_duration_ms,
    quantile_cont(CAST(duration_ms AS DOUBLE), 0.95) AS p95_duration_ms,
    COUNT(DISTINCT username) AS active_users
FROM silver_tool_events
GROUP BY event_date, event_type
