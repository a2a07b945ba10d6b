-- description: USD publishes of every kind
-- grain: event_id of publish.*.usd
-- inputs: fresh
WITH fields AS (
    SELECT
        *,
        from_json(payload, '{"publish_type":"VARCHAR","publish_path":"VARCHAR","output_path":"VARCHAR","duration_ms":"VARCHAR","output_size_bytes":"VARCHAR"}') AS p,
        from_json(metrics, '{"duration_ms":"VARCHAR","launch_duration_ms":"VARCHAR","output_size_bytes":"VARCHAR"}') AS m
    FROM fresh
    WHERE dataset = 'publish_usd'
)

SELECT
    event_id,
    event_type,
    coalesce(p.publish_type, split_part(event_type, '.', 2)) AS publish_type,
    occurred_at_utc,
    event_date,
    status,
    pipeline_dcc AS dcc,
    host_hostname AS hostname,
    host_user AS username,
    scope_show AS show,
    scope_sequence AS sequence,
    scope_shot AS shot,
    scope_asset AS asset,
    scope_department AS department,
    coalesce(p.publish_path, p.output_path) AS output_path,
    to_bigint(coalesce(m.duration_ms, m.launch_duration_ms, p.duration_ms, event_duration_ms)) AS duration_ms,
    to_bigint(coalesce(m.output_size_bytes, p.output_size_bytes)) AS output_size_bytes,
    error_code,
    error_message,
    commit_seq
FROM fields
