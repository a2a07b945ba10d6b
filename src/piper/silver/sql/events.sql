-- description: every accepted event
-- grain: event_id
-- inputs: fresh, shapes
-- notes: a top-level duration_ms is kept among the metrics when it is the one that counts, so that payload and metrics
--        alone give every column of the other datasets
WITH durations AS (
    SELECT
        *,
        CASE
            WHEN event_duration_ms IS NOT NULL
                AND json_extract_string(metrics, '$.duration_ms') IS NULL
                AND json_extract_string(metrics, '$.launch_duration_ms') IS NULL
                AND json_extract_string(payload, '$.duration_ms') IS NULL
            THEN coalesce(
                CAST(to_bigint(event_duration_ms) AS VARCHAR),
                CAST(to_double(event_duration_ms) AS VARCHAR),
                CAST(to_json(event_duration_ms) AS VARCHAR)
            )
        END AS duration_text
    FROM fresh LEFT JOIN shapes USING (shape)
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
        WHEN duration_text IS NULL THEN metrics
        WHEN metrics IS NULL OR metrics = '{}' THEN '{"duration_ms":' || duration_text || '}'
        WHEN json_exists(metrics, '$.duration_ms')
        THEN CAST(json_merge_patch(metrics, '{"duration_ms":' || duration_text || '}') AS VARCHAR)
        ELSE '{"duration_ms":' || duration_text || ',' || substr(metrics, 2)
    END AS metrics,
    source_file,
    source_offset,
    source_line,
    ingested_at_utc,
    is_known_type,
    contract_violation,
    commit_seq
FROM durations
