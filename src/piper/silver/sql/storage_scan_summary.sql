-- description: one walk over the studio's storage, in total
-- grain: event_id of storage.scan.summary
-- inputs: fresh
WITH fields AS (
    SELECT
        *,
        from_json(payload, '{"scan_id":"VARCHAR","roots_scanned_count":"VARCHAR","buckets_emitted_count":"VARCHAR","bucket_count":"VARCHAR","total_file_count":"VARCHAR","scan_duration_ms":"VARCHAR","duration_ms":"VARCHAR"}') AS p,
        from_json(metrics, '{"size_bytes_total":"VARCHAR","total_size_bytes":"VARCHAR","file_count_total":"VARCHAR","dir_count_total":"VARCHAR","scan_duration_s":"VARCHAR"}') AS m
    FROM fresh
    WHERE dataset = 'storage_scan_summary'
)

SELECT
    event_id,
    occurred_at_utc,
    event_date,
    status,
    host_hostname AS hostname,
    host_user AS username,
    p.scan_id AS scan_id,
    to_bigint(p.roots_scanned_count) AS roots_scanned_count,
    to_bigint(coalesce(p.buckets_emitted_count, p.bucket_count)) AS bucket_count,
    to_bigint(coalesce(m.size_bytes_total, m.total_size_bytes)) AS total_size_bytes,
    to_bigint(coalesce(m.file_count_total, p.total_file_count)) AS total_file_count,
    to_bigint(m.dir_count_total) AS total_dir_count,
    CASE
        WHEN p.scan_duration_ms IS NOT NULL THEN to_double(p.scan_duration_ms) / 1000
        WHEN m.scan_duration_s IS NOT NULL THEN to_double(m.scan_duration_s)
        ELSE to_double(p.duration_ms) / 1000
    END AS scan_duration_s,
    error_code,
    error_message,
    commit_seq
FROM fields
