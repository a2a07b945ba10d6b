-- description: which field of the registry a shape of events breaks; NULL = none, or a type that the registry lacks
-- grain: shape (type, status and present keys), as parse.sql numbers them
-- inputs: parsed (the output of parse.sql)
WITH examples AS (
    SELECT
        shape,
        any_value(event_type) AS event_type,
        any_value(status) AS status,
        list_concat(
            list_transform(json_keys(any_value(payload)), lambda k: 'payload.' || k),
            list_transform(json_keys(any_value(metrics)), lambda k: 'metrics.' || k),
            CASE WHEN any_value(event_duration_ms) IS NOT NULL THEN ['event.duration_ms'] END
        ) AS present
    FROM parsed
    WHERE shape IS NOT NULL
    GROUP BY shape
)

SELECT
    shape,
    CASE event_type {{violations}} END AS contract_violation
FROM examples
