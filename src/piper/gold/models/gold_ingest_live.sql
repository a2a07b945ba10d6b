-- description: How far behind each host directory of the spool is: its newest event, how late that came, the files
--   that piper knows and what of them is still unread.
-- grain: host
-- inputs: spool_hosts, gold_host_activity_daily, refresh
-- period: now
-- pause: 60 s
-- column host: host directory of the spool; one with no file for 30 days is forgotten; unit text
-- column last_event_at: latest occurred_at_utc, NULL where none of its lines became an event; unit time
-- column last_ingested_at: latest ingested_at_utc; unit time
-- column lag_s: ingested_at_utc - occurred_at_utc of the latest event, negative where the host's clock is ahead; unit s
-- column files: files below the directory, less those that are gone; recounted once a minute; unit count
-- column bytes_behind: bytes that could be read and are not committed yet; unit bytes
-- column as_of: when this was true, in UTC; unit time
WITH newest AS (
    SELECT
        host,
        MAX(last_event_at) AS last_event_at,
        MAX(last_ingested_at) AS last_ingested_at,
        arg_max(last_event_lag_s, event_date) AS lag_s
    FROM gold_host_activity_daily
    GROUP BY host
)

SELECT
    spool_hosts.host,
    newest.last_event_at,
    newest.last_ingested_at,
    newest.lag_s,
    spool_hosts.files,
    spool_hosts.bytes_behind,
    refresh.now_utc AS as_of
FROM spool_hosts
LEFT JOIN newest ON newest.host = spool_hosts.host
CROSS JOIN refresh
