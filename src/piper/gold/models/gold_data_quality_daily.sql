-- description: How complete, correct and timely the telemetry of a day is. A day with only quarantined lines
--   or duplicates has a row too.
-- grain: event_date
-- inputs: silver_events, ingest_counts
-- period: day
-- column event_date: day of the events, in UTC; unit date
-- column total_events: accepted events; unit count
-- column error_events: accepted events with status error; unit count
-- column error_rate_pct: 100 * error_events / total_events, NULL without events; unit percent
-- column active_users: distinct user names; unit count
-- column active_hosts: distinct host names; unit count
-- column active_event_types: distinct event types; unit count
-- column unknown_type_events: accepted events of a type that the registry does not know; unit count
-- column contract_violations: accepted events of a known type that break the registry; unit count
-- column quarantined_lines: lines rejected; unit count
-- column duplicate_events: lines dropped because their event_id was already there; unit count
-- column p95_ingest_lag_s: exact 0.95 quantile (interpolated) of ingested_at_utc - occurred_at_utc, negative
--   where a host's clock is ahead, NULL without events; unit s
-- column max_clock_skew_s: furthest that an event was ahead of its ingestion, 0 where none was; unit s
WITH events AS (
    SELECT
        event_date,
        COUNT(*) AS total_events,
        COUNT(*) FILTER (WHERE status = 'error') AS error_events,
        COUNT(DISTINCT host_user) AS active_users,
        COUNT(DISTINCT host_hostname) AS active_hosts,
        COUNT(DISTINCT event_type) AS active_event_types,
        COUNT(*) FILTER (WHERE NOT is_known_type) AS unknown_type_events,
        COUNT(contract_violation) AS contract_violations,
        quantile_cont(date_diff('microsecond', occurred_at_utc, ingested_at_utc) / 1e6, 0.95)
            AS p95_ingest_lag_s,
        MAX(date_diff('microsecond', ingested_at_utc, occurred_at_utc) / 1e6) AS furthest_ahead_s
    FROM silver_events
    GROUP BY event_date
),

counts AS (
    SELECT event_date, quarantined_lines, duplicate_events
    FROM ingest_counts
    WHERE quarantined_lines > 0 OR duplicate_events > 0
)

SELECT
    COALESCE(events.event_date, counts.event_date) AS event_date,
    COALESCE(events.total_events, 0) AS total_events,
    COALESCE(events.error_events, 0) AS error_events,
    100 * events.error_events / NULLIF(events.total_events, 0) AS error_rate_pct,
    COALESCE(events.active_users, 0) AS active_users,
    COALESCE(events.active_hosts, 0) AS active_hosts,
    COALESCE(events.active_event_types, 0) AS active_event_types,
    COALESCE(events.unknown_type_events, 0) AS unknown_type_events,
    COALESCE(events.contract_violations, 0) AS contract_violations,
    COALESCE(counts.quarantined_lines, 0) AS quarantined_lines,
    COALESCE(counts.duplicate_events, 0) AS duplicate_events,
    events.p95_ingest_lag_s,
    GREATEST(COALESCE(events.furthest_ahead_s, 0), 0) AS max_clock_skew_s
FROM events
FULL OUTER JOIN counts ON counts.event_date = events.event_date
