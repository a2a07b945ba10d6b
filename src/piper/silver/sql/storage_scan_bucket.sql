-- description: one walk over the studio's storage, per bucket
-- grain: event_id of storage.scan.bucket
-- inputs: fresh
WITH fields AS (
    SELECT
        *,
        from_json(payload, '{"scan_id":"VARCHAR","bucket_id":"VARCHAR","bucket":"VARCHAR","category":"VARCHAR","scope_type":"VARCHAR","scope_code":"VARCHAR","path":"VARCHAR","root_path":"VARCHAR","size_bytes":"VARCHAR","file_count":"VARCHAR","dir_count":"VARCHAR","scan_duration_ms":"VARCHAR","duration_ms":"VARCHAR"}') AS p,
        from_json(metrics, '{"size_bytes":"VARCHAR","total_size_bytes":"VARCHAR","file_count":"VARCHAR","dir_count":"VARCHAR","scan_duration_s":"VARCHAR"}') AS m
    FROM fresh
    WHERE dataset = 'storage_scan_bucket'
)

SELECT
    event_id,
    occurred_at_utc,
    event_date,
    status,
    host_hostname AS hostname,
    host_user AS username,
    p.scan_id AS scan_id,
    p.bucket_id AS bucket_id,
    coalesce(p.bucket, p.category) AS bucket,
    p.category AS category,
    p.scope_type AS scope_type,
    p.scope_code AS scope_code,
    coalesce(p.path, p.root_path) AS root_path,
    to_bigint(coalesce(m.size_bytes, m.total_size_bytes, p.size_bytes)) AS total_size_bytes,
    to_bigint(coalesce(m.file_count, p.file_count)) AS file_count,
    to_bigint(coalesce(m.dir_count, p.dir_count)) AS dir_count,
    CASE
        WHEN p.scan_duration_ms IS NOT NULL THEN to_double(p.scan_duration_ms) / 1000
        WHEN m.scan_duration_s IS NOT NULL THEN to_double(m.scan_duration_s)
        ELSE to_double(p.duration_ms) / 1000
    END AS scan_duration_s,
    error_code,
    error_message,
    commit_seq
FROM fields
