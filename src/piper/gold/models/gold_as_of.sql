-- description: How current each model is: when it was computed last, and up to which event it reaches. A model is
--   computed again only when silver has news for it, so an old refreshed_at alone is no fault.
-- grain: model
-- inputs: gold_watermark, model_events, gold_activity_daily
-- period: now
-- column model: name of the model; this one is left out; unit text
-- column refreshed_at: when its last refresh ended, in UTC; unit time
-- column last_event_at: latest occurred_at_utc of the event types that its inputs hold, NULL without any; unit time
-- column last_ingested_at: latest ingested_at_utc of the same; unit time
WITH newest AS (
    SELECT event_type, MAX(last_event_at) AS last_event_at, MAX(last_ingested_at) AS last_ingested_at
    FROM gold_activity_daily
    GROUP BY event_type
)

SELECT
    marks.model,
    marks.refreshed_at_utc AS refreshed_at,
    MAX(newest.last_event_at) AS last_event_at,
    MAX(newest.last_ingested_at) AS last_ingested_at
FROM gold_watermark AS marks
INNER JOIN model_events ON model_events.model = marks.model
LEFT JOIN newest ON newest.event_type = model_events.event_type
GROUP BY marks.model, marks.refreshed_at_utc
