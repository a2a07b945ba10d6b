-- description: How large each storage bucket is at its last scan of a week, and how much it grew since the
--   last scan of the week before. Success and info scans only.
-- grain: week_start, bucket, scope_type, scope_code, root_path
-- inputs: silver_storage_scan_bucket
-- period: week
-- column week_start: Monday of the scans' week, in UTC; unit date
-- column bucket: name of the bucket, NULL where the scan names none; unit text
-- column scope_type: what the bucket belongs to (show, shot, asset ...), NULL where the scan names none; unit
--   text
-- column scope_code: code of that show, shot or asset, NULL where the scan names none; unit text
-- column root_path: folder that was scanned, NULL where the scan names none; unit text
-- column scan_count: success and info scans of the week; unit count
-- column latest_size_bytes: size at the latest scan by occurred_at_utc (of scans in one second, the largest
--   event_id); NULL where that scan reports none; unit bytes
-- column latest_file_count: files at the same scan; unit count
-- column latest_dir_count: folders at the same scan; unit count
-- column growth_bytes: latest_size_bytes less that of the calendar week before, NULL where that week has no
--   scan of this bucket; unit bytes
WITH scans AS (
    SELECT
        CAST(date_trunc('week', event_date) AS DATE) AS week_start,
        bucket,
        scope_type,
        scope_code,
        root_path,
        total_size_bytes,
        file_count,
        dir_count,
        occurred_at_utc,
        event_id
    FROM silver_storage_scan_bucket
    WHERE status IN ('success', 'info')
),

-- The values of one struct come from one scan; arg_max of each column alone would skip NULLs and mix scans.
weeks AS (
    SELECT
        week_start,
        bucket,
        scope_type,
        scope_code,
        root_path,
        COUNT(*) AS scan_count,
        arg_max(
            {'size': total_size_bytes, 'files': file_count, 'dirs': dir_count},
            {'at': occurred_at_utc, 'id': event_id}
        ) AS latest
    FROM scans
    GROUP BY week_start, bucket, scope_type, scope_code, root_path
)

SELECT
    this_week.week_start,
    this_week.bucket,
    this_week.scope_type,
    this_week.scope_code,
    this_week.root_path,
    this_week.scan_count,
    this_week.latest.size AS latest_size_bytes,
    this_week.latest.files AS latest_file_count,
    this_week.latest.dirs AS latest_dir_count,
    -- 128 bits, because the difference of two nonsense sizes would overflow and stop the model.
    TRY_CAST(
        CAST(this_week.latest.size AS HUGEINT) - CAST(last_week.latest.size AS HUGEINT) AS BIGINT
    ) AS growth_bytes
FROM weeks AS this_week
LEFT JOIN weeks AS last_week
    ON last_week.week_start = this_week.week_start - 7
    AND last_week.bucket IS NOT DISTINCT FROM this_week.bucket
    AND last_week.scope_type IS NOT DISTINCT FROM this_week.scope_type
    AND last_week.scope_code IS NOT DISTINCT FROM this_week.scope_code
    AND last_week.root_path IS NOT DISTINCT FROM this_week.root_path
