-- description: which field of the registry a shape of events breaks; NULL = none, or a type that the registry lacks
-- grain: shape (type, status and present keys), as parse.sql numbers them
-- inputs: parsed (the output of parse.sql)
-- notes: a field that is null is not there; of duplicate keys the first one counts, here too. The registry's names are
--        looked for among the keys, and not the other way round: a line of 1 MiB has 100,000 keys if somebody wants it.
WITH examples AS (
    SELECT
        shape,
        any_value(event_type) AS event_type,
        any_value(status) AS status,
        any_value(payload) AS payload,
        any_value(metrics) AS metrics,
        any_value(event_duration_ms) AS event_duration_ms
    FROM parsed
    WHERE shape IS NOT NULL
    GROUP BY shape
),

fields AS (
    SELECT
        *,
        json_type(payload, [{{payload_paths}}]) AS payload_types,
        json_type(metrics, [{{metrics_paths}}]) AS metrics_types
    FROM examples
),

presence AS (
    SELECT
        shape,
        event_type,
        status,
        list_concat(
            [name FOR name, place IN [{{payload_fields}}] IF payload_types[place] <> 'NULL'],
            [name FOR name, place IN [{{metrics_fields}}] IF metrics_types[place] <> 'NULL'],
            CASE WHEN event_duration_ms IS NOT NULL THEN ['event.duration_ms'] END
        ) AS present
    FROM fields
)

SELECT
    shape,
    CASE event_type {{violations}} END AS contract_violation
FROM presence
