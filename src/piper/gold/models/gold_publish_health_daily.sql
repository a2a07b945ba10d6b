-- description: How many USD publishes were tried, how many worked, how long they took and what they wrote.
-- grain: event_date, show, sequence, event_type
-- inputs: silver_publish_usd
-- period: day
-- column event_date: day of the publishes, in UTC; unit date
-- column show: show of the scope, NULL where the event names none; unit text
-- column sequence: sequence of the scope, NULL where the event names none; unit text
-- column event_type: publish.<kind>.usd; unit text
-- column total_publishes: publishes of any status; unit count
-- column success_count: publishes with status success; unit count
-- column error_count: publishes with status error; unit count
-- column success_rate_pct: 100 * success_count / total_publishes; unit percent
-- column avg_duration_ms: mean duration of the publishes that report one, of any status; unit ms
-- column p50_duration_ms: exact median duration of the publishes that report one; unit ms
-- column p95_duration_ms: exact 0.95 quantile (interpolated) of the same durations; unit ms
-- column total_output_bytes: bytes written, NULL where no publish reports them; unit bytes
SELECT
    event_date,
    "show",
    sequence,
    event_type,
    COUNT(*) AS total_publishes,
    COUNT(*) FILTER (WHERE status = 'success') AS success_count,
    COUNT(*) FILTER (WHERE status = 'error') AS error_count,
    100 * COUNT(*) FILTER (WHERE status = 'success') / NULLIF(COUNT(*), 0) AS success_rate_pct,
    AVG(duration_ms) AS avg_duration_ms,
    quantile_cont(CAST(duration_ms AS DOUBLE), 0.5) AS p50_duration_ms,
    quantile_cont(CAST(duration_ms AS DOUBLE), 0.95) AS p95_duration_ms,
    -- A sum beyond 64 bits can only come from a nonsense value: NULL, not an error that stops the model.
    TRY_CAST(SUM(output_size_bytes) AS BIGINT) AS total_output_bytes
FROM silver_publish_usd
GROUP BY event_date, "show", sequence, event_type
