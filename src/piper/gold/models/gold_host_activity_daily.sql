-- description: How much each host directory of the spool sent in a day, and how far behind its newest event came.
-- grain: event_date, host
-- inputs: silver_events
-- period: day
-- merge: events sum, errors sum, last_event_at max, last_event_lag_s max by last_event_at, last_ingested_at max
-- column event_date: day of the events, in UTC; unit date
-- column host: host directory of the spool, the first part of source_file; unit text
-- column events: accepted events; unit count
-- column errors: accepted events with status error; unit count
-- column last_event_at: latest occurred_at_utc; unit time
-- column last_event_lag_s: ingested_at_utc - occurred_at_utc of that event (of several in one moment, the one
--   ingested last), negative where the host's clock is ahead; unit s
-- column last_ingested_at: latest ingested_at_utc; unit time
WITH hosts AS (
    SELECT
        event_date,
        split_part(source_file, '/', 1) AS host,
        COUNT(*) AS events,
        COUNT(*) FILTER (WHERE status = 'error') AS errors,
        MAX({'at': occurred_at_utc, 'ingested': ingested_at_utc}) AS newest,
        MAX(ingested_at_utc) AS last_ingested_at
    FROM silver_events
    GROUP BY ALL
)

SELECT
    event_date,
    host,
    events,
    errors,
    newest.at AS last_event_at,
    date_diff('microsecond', newest.at, newest.ingested) / 1e6 AS last_event_lag_s,
    last_ingested_at
FROM hosts
