-- description: What happened in the last 48 hours, in buckets of 5 minutes: events and errors by group of event
--   types. A bucket without events of a group has no row for it.
-- grain: bucket_start, event_group
-- inputs: silver_events, event_types
-- period: live
-- bucket: 5 m
-- window: 48 h
-- merge: events sum, errors sum
-- column bucket_start: start of the 5 minutes in which the events occurred, in UTC; unit time
-- column event_group: publish, tool, farm, render, storage, or other (types that the registry does not know);
--   unit text
-- column events: accepted events; unit count
-- column errors: accepted events with status error; unit count
SELECT
    time_bucket(INTERVAL 5 MINUTE, events.occurred_at_utc) AS bucket_start,
    COALESCE(types.event_group, 'other') AS event_group,
    COUNT(*) AS events,
    COUNT(*) FILTER (WHERE events.status = 'error') AS errors
FROM silver_events AS events
LEFT JOIN event_types AS types ON types.event_type = events.event_type
GROUP BY ALL
