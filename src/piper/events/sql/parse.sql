-- description: one slice of lines → one row per line: its typed envelope, or the reason of its rejection
-- grain: line
-- inputs: lines(line_index BIGINT, line VARCHAR, suspicious BOOLEAN, source_file VARCHAR, source_offset BIGINT,
--         source_line BIGINT), valid UTF-8 only; registry(event_type, event_group, dataset); $received_at TIMESTAMP: the clock of this batch, UTC
-- output: verdict NULL = accepted, 'blank:' = no event and no rejection, else 'reason:field'. occurred_at_utc is UTC,
--         microseconds (what is finer is cut off). shape: events with equal type, status, keys and null fields share it,
--         so that the registry is checked once a shape (shapes.sql) and not once an event. key: of accepted lines, for
--         deduplication (silver/keys.py).
-- notes: DuckDB's JSON reader takes NaN, Infinity and trailing commas; `is_json` finds them outside of strings, looking
--        only at `suspicious` lines: those with bytes that such an oddity cannot do without. Blank lines are judged and
--        not filtered out, for a filter would be pushed below and compute is_json twice. Of duplicate keys the first
--        one counts. A time is RFC 3339 in UTC, as nearly all write it, which is cast as it is; or RFC 3339 or looser
--        (no seconds, a space, a comma, +05): no 24:00, no leap second, no year that UTC would put before the year 1.
WITH checked AS (
    SELECT
        line_index,
        source_file,
        source_offset,
        source_line,
        line,
        CASE
            WHEN NOT json_valid(line) THEN FALSE
            WHEN NOT suspicious THEN TRUE
            ELSE NOT regexp_matches(
                regexp_replace(line, '"(?:[^"\\]|\\.)*"', '""', 'g'), '(?i)nan|inf|,[ \t\r\n]*[}\]]'
            )
        END AS is_json
    FROM lines
),

documents AS (
    SELECT
        * EXCLUDE (line),
        NOT is_json AND regexp_full_match(line, '[ \t\r\n]*') AS is_blank,
        CASE WHEN is_json THEN json_type(line, [{{type_paths}}]) END AS t,
        CASE WHEN is_json THEN from_json(line, '{{structure}}') END AS e
    FROM checked
),

dialects AS (
    SELECT
        *,
        {{schema_version_type}} IS NULL
        AND (
            {{occurred_at_type}} IS NOT NULL
            OR ({{occurred_at_utc_type}} IS NULL AND ({{hostname_type}} IS NOT NULL OR {{host_user_type}} IS NOT NULL))
        ) AS is_flat
    FROM documents
),

envelopes AS (
    SELECT
        *,
        CASE WHEN is_flat THEN e.occurred_at ELSE e.occurred_at_utc END AS occurred_text,
        CASE
            WHEN is_flat AND e.event_type = 'publish.usd' AND json_extract_string(e.payload, '$.kind') IN ({{publish_kinds}})
            THEN 'publish.' || json_extract_string(e.payload, '$.kind') || '.usd'
            ELSE e.event_type
        END AS event_type,
        CASE
            WHEN regexp_full_match(occurred_text, '\d{4}-\d\d-\d\dT([01]\d|2[0-3]):\d\d:\d\d(\.\d{1,6})?Z')
            THEN TRY_CAST(occurred_text AS TIMESTAMP)
            WHEN regexp_full_match(
                occurred_text,
                '\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):\d\d(:\d\d([.,]\d{1,9})?)?([Zz]|[+-]([01]\d|2[0-3]):?[0-5]\d|[+-]([01]\d|2[0-3]))'
            )
            THEN CAST(
                TRY_CAST(
                    regexp_replace(
                        replace(upper(occurred_text), ',', '.'), '^(.{10}).(\d\d:\d\d)([Z+-].*)$', '\1T\2:00\3'
                    ) AS TIMESTAMPTZ
                ) AS TIMESTAMP
            )
        END AS occurred_at_utc,
        e.status AS status
    FROM dialects
),

judged AS (
    SELECT
        *,
        CASE WHEN is_flat THEN {{flat_missing}} ELSE {{nested_missing}} END AS missing,
        CASE WHEN is_flat THEN {{flat_wrong_type}} ELSE {{nested_wrong_type}} END AS wrong_type,
        {{object_problem}} AS not_object
    FROM envelopes
),

reasons AS (
    SELECT
        *,
        CASE
            WHEN is_blank THEN 'blank:'
            WHEN NOT is_json THEN 'invalid_json:'
            WHEN {{root_type}} <> 'OBJECT' THEN 'not_an_object:'
            WHEN NOT is_flat AND ({{schema_version_type}} IS NULL OR {{schema_version_type}} = 'NULL' OR e.schema_version = '')
            THEN 'missing_field:schema_version'
            WHEN NOT is_flat AND {{schema_version_type}} <> 'VARCHAR' THEN 'invalid_field:schema_version'
            WHEN NOT is_flat AND NOT regexp_full_match(e.schema_version, '1\.\d+')
            THEN 'unsupported_schema_version:schema_version'
            WHEN missing IS NOT NULL THEN 'missing_field:' || missing
            WHEN wrong_type IS NOT NULL THEN 'invalid_field:' || wrong_type
            WHEN length(event_type) > 128 OR NOT regexp_full_match(event_type, '[a-z0-9_]+(\.[a-z0-9_]+)+')
            THEN 'invalid_field:event_type'
            WHEN status NOT IN ({{statuses}}) THEN 'invalid_field:status'
            WHEN not_object IS NOT NULL THEN 'invalid_field:' || not_object
            WHEN occurred_at_utc IS NULL OR occurred_at_utc < TIMESTAMP '0001-01-01 00:00:00'
            THEN 'invalid_field:' || CASE WHEN is_flat THEN 'occurred_at' ELSE 'occurred_at_utc' END
            WHEN occurred_at_utc > CAST($received_at AS TIMESTAMP) + INTERVAL 1 HOUR
            THEN 'clock_skew:' || CASE WHEN is_flat THEN 'occurred_at' ELSE 'occurred_at_utc' END
        END AS verdict
    FROM judged
),

accepted AS (
    SELECT
        line_index,
        source_file,
        source_offset,
        source_line,
        verdict,
        e.event_id AS event_id,
        CASE WHEN verdict IS NULL THEN md5_number(e.event_id) END AS key,
        CASE WHEN is_flat THEN 'flat' ELSE e.schema_version END AS schema_version,
        event_type,
        occurred_at_utc,
        CAST(occurred_at_utc AS DATE) AS event_date,
        status,
        CASE WHEN is_flat THEN 'sandwich-pipeline' ELSE e.pipeline.name END AS pipeline_name,
        CASE WHEN is_flat THEN e.dcc ELSE e.pipeline.dcc END AS pipeline_dcc,
        CASE WHEN is_flat THEN e.hostname ELSE e.host.hostname END AS host_hostname,
        CASE WHEN is_flat THEN e.host_user ELSE e.host.user END AS host_user,
        CASE WHEN is_flat THEN NULL ELSE e.host.os END AS host_os,
        CASE WHEN is_flat THEN e.action_id ELSE e.session.session_id END AS session_id,
        CASE WHEN is_flat THEN e.action_id ELSE e.session.action_id END AS action_id,
        e.scope.show AS scope_show,
        e.scope.sequence AS scope_sequence,
        e.scope.shot AS scope_shot,
        e.scope.asset AS scope_asset,
        e.scope.department AS scope_department,
        e.scope.task AS scope_task,
        CASE WHEN is_flat THEN coalesce(e.error_code, e.error.code) ELSE e.error.code END AS error_code,
        CASE WHEN is_flat THEN coalesce(e.error_message, e.error.message) ELSE e.error.message END AS error_message,
        CAST(e.payload AS VARCHAR) AS payload,
        CAST(e.metrics AS VARCHAR) AS metrics,
        e.duration_ms AS event_duration_ms,
        CASE
            WHEN verdict IS NULL
            THEN hash(
                event_type, status, json_keys(e.payload), json_keys(e.metrics), e.duration_ms IS NULL,
                CASE WHEN contains(payload, ':null') THEN json_type(e.payload, '$.*') END,
                CASE WHEN contains(metrics, ':null') THEN json_type(e.metrics, '$.*') END
            )
        END AS shape
    FROM reasons
)

SELECT
    accepted.*,
    registry.event_type IS NOT NULL AS is_known_type,
    coalesce(dataset, '') AS dataset,
    coalesce(event_group, 'other') AS event_group
FROM accepted LEFT JOIN registry ON accepted.event_type = registry.event_type
