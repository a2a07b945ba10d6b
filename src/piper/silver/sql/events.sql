-- description: every accepted event
-- grain: event_id
-- inputs: fresh
-- notes: a flat event's top-level duration_ms is kept among its metrics when they hold no duration
WITH numbered AS (
    SELECT
        *,
        coalesce(CAST(to_bigint(event_duration_ms) AS VARCHAR), CAST(to_double(event_duration_ms) AS VARCHAR)) AS duration_text
    FROM fresh
)

SELECT
    event_id,
    schema_version,
    event_type,
    occurred_at_utc,
    event_date,
    status,
    pipeline_name,
    pipeline_dcc,
    host_hostname,
    host_user,
    host_os,
    session_id,
    action_id,
    scope_show,
    scope_sequence,
    scope_shot,
    scope_asset,
    scope_department,
    scope_task,
    error_code,
    error_message,
    payload,
    CASE
        WHEN event_duration_ms IS NULL OR duration_text IS NULL THEN metrics
        WHEN metrics IS NULL OR len(json_keys(metrics)) = 0 THEN '{"duration_ms":' || duration_text || '}'
        WHEN json_exists(metrics, '$.duration_ms') OR json_exists(metrics, '$.launch_duration_ms') THEN metrics
        ELSE '{"duration_ms":' || duration_text || ',' || substr(metrics, 2)
    END AS metrics,
    source_file,
    source_offset,
    source_line,
    ingested_at_utc,
    is_known_type,
    contract_violation,
    commit_seq
FROM numbered
