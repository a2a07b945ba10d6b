-- description: How much of each event type came in a day, and how far its data reaches.
-- grain: event_date, event_type
-- inputs: silver_events
-- period: day
-- merge: events sum, errors sum, last_event_at max, last_ingested_at max
-- column event_date: day of the events, in UTC; unit date
-- column event_type: the event type; unknown for all types that the registry does not know; unit text
-- column events: accepted events; unit count
-- column errors: accepted events with status error; unit count
-- column last_event_at: latest occurred_at_utc; unit time
-- column last_ingested_at: latest ingested_at_utc; unit time
SELECT
    event_date,
    CASE WHEN is_known_type THEN event_type ELSE 'unknown' END AS event_type,
    COUNT(*) AS events,
    COUNT(*) FILTER (WHERE status = 'error') AS errors,
    MAX(occurred_at_utc) AS last_event_at,
    MAX(ingested_at_utc) AS last_ingested_at
FROM silver_events
GROUP BY ALL
