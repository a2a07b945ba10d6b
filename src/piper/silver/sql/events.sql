-- description: every accepted event
-- grain: event_id
-- inputs: fresh
-- notes: a top-level duration_ms is kept as the event's metrics when it brings none
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
    coalesce(
        metrics,
        '{"duration_ms":'
        || coalesce(
            to_json(to_bigint(event_duration_ms)), to_json(to_double(event_duration_ms)), to_json(event_duration_ms)
        )
        || '}'
    ) AS metrics,
    source_file,
    source_offset,
    source_line,
    ingested_at_utc,
    is_known_type,
    contract_violation,
    commit_seq
FROM fresh
