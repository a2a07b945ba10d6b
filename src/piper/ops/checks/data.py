"""The data: is what the views hold fresh, complete, correct and as it used to be?"""

from __future__ import annotations

from datetime import datetime, timedelta
from statistics import mean

from piper.ops.checks import Check, Level, grade, judged
from piper.ops.facts import RECENT_DAYS, WINDOW_DAYS, HostSeen, Warehouse
from piper.ops.words import duration, some

EVENT_WARN_SECONDS, EVENT_FAIL_SECONDS = 3600, 24 * 3600
"""The farm is sampled every few minutes day and night: an hour without any event is a broken writer or mount."""
VOLUME_MIN = 200
"""Below so many events a day the ratio to other days is noise."""
VOLUME_LOW, VOLUME_HIGH = 0.1, 10.0
"""A Sunday has a fifth of a working day; a tenth is no weekend any more, and tenfold is a writer in a loop."""
INVALID_WARN, INVALID_FAIL = 0.01, 0.1
"""Crashes cut a line in a thousand at most; 1 % is a broken writer, 10 % a release that speaks another dialect."""
SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 60, 1800
"""With NTP a second is much; from an hour ahead on lines are quarantined, so half of that is urgent."""
LAG_WARN_SECONDS = 60
"""The daemon promises seconds, writers flush every second. Hours may be a host that came back: no FAIL."""
REGULAR_DAYS = 3
"""A host that wrote on fewer days is a visitor."""
SERVER_SILENT = timedelta(days=1)
"""What writes every day, weekends too, is a machine of the farm: a day without a word is a failure."""
HOST_SILENT = timedelta(days=3)
"""An artist's workstation rests from Friday evening to Monday morning."""
STALE_HOSTS_MIN, STALE_SHARE = 3, 0.2
"""One silent workstation is a holiday, a fifth of them is a mount or a release."""
VIOLATION_WARN = 0.01
"""Contract violations are kept whole; below 1 % they are a matter for the data-quality dashboard."""


def check_catalog(found: Warehouse) -> Check:
    """Does every view answer?"""
    if found.broken_views:
        view, error = next(iter(found.broken_views.items()))
        more = f" (and {len(found.broken_views) - 1} more)" if len(found.broken_views) > 1 else ""
        hint = "Run `piper materialize`: it writes the catalog and gold anew."
        if ".parquet" in error:
            hint = "That chunk is damaged: put it back from a backup, or run `piper repair`."
        return Check("catalog", Level.FAIL, f"{view}: {error}{more}", hint)
    return Check("catalog", Level.PASS, "all views answer")


def check_freshness(found: Warehouse, now: datetime) -> Check:
    """How old is the newest event, and how long ago was anything committed?"""
    if found.newest_event is None:
        hint = "Once DCCs write to the spool, piperd or `piper ingest` brings it here."
        return Check("freshness", Level.WARN, "no data yet", hint)
    age = max(0.0, (now - found.newest_event).total_seconds())
    ingested = "over a week ago"
    if found.last_ingest is not None:
        ingested = f"{duration(max(0.0, (now - found.last_ingest).total_seconds()))} ago"
    hint = "Is piperd running (`piper status`), is the spool mounted, do the hosts write?"
    value = f"newest event {duration(age)} old, last commit of events {ingested}"
    return judged("freshness", grade(age, EVENT_WARN_SECONDS, EVENT_FAIL_SECONDS), value, hint)


def check_volume(found: Warehouse) -> Check:
    """Events of today against the same hours of the days before."""
    if not found.earlier_days:
        return Check("volume", Level.PASS, f"{found.events_today:,} events today, no earlier day to compare with")
    usual = mean(found.earlier_days)
    value = (
        f"{found.events_today:,} events today, {usual:,.0f} by this time on the {len(found.earlier_days)} days before"
    )
    if max(usual, found.events_today) < VOLUME_MIN:
        return Check("volume", Level.PASS, f"{value} (too few to judge)")
    if found.events_today > VOLUME_HIGH * usual:
        return Check("volume", Level.WARN, value, "Look for a writer in a loop: top source_file in silver_events.")
    level = Level.WARN if found.events_today < VOLUME_LOW * usual else Level.PASS
    return judged("volume", level, value, "Fewer than usual: see freshness, and which hosts are missing today.")


def check_invalid_rate(found: Warehouse) -> Check:
    """Quarantined lines among all that came in."""
    lines = found.ingested + found.quarantined
    if not lines:
        return Check("invalid_rate", Level.PASS, f"nothing came in during {WINDOW_DAYS} days")
    rate = found.quarantined / lines
    value = f"{100 * rate:.2f} % ({found.quarantined:,} of {lines:,} lines in {WINDOW_DAYS} days)"
    hint = "quarantine/invalid_jsonl has each line with its reason and file; the writer of that file needs a fix."
    return judged("invalid_rate", grade(rate, INVALID_WARN, INVALID_FAIL), value, hint)


def check_clock_skew(found: Warehouse) -> Check:
    """How far ahead of the ingest was an event, and on which hosts?"""
    level = grade(found.clock_skew_seconds, SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS)
    value = f"up to {duration(found.clock_skew_seconds)} ahead in {WINDOW_DAYS} days"
    ahead = [f"{host} {duration(seconds)}" for host, seconds in found.skewed_hosts if seconds > SKEW_WARN_SECONDS]
    if ahead:
        value += f": {some(ahead)}"
    hint = "A host's clock is ahead: check its NTP. From an hour on its lines are quarantined as clock_skew."
    return judged("clock_skew", level, value, hint)


def check_hosts(found: Warehouse) -> Check:
    """Does every host that usually writes still write? Silence is measured against the newest event of all."""
    regular = [host for host in found.hosts if host.days >= REGULAR_DAYS]
    if not regular or found.newest_event is None:
        return Check("hosts", Level.PASS, f"{len(found.hosts):,} hosts, none of them known for long enough")
    silent = [(found.newest_event - host.last_event, host) for host in regular]
    servers = [(gone, host) for gone, host in silent if _never_rests(host) and gone > SERVER_SILENT]
    others = [(gone, host) for gone, host in silent if not _never_rests(host) and gone > HOST_SILENT]
    value = f"{len(found.hosts):,} hosts in {RECENT_DAYS} days"
    if servers or others:
        named = sorted(servers + others, key=lambda item: (item not in servers, -item[0], item[1].name))
        value += f", silent: {some([f'{host.name} for {duration(gone.total_seconds())}' for gone, host in named])}"
    many = len(others) >= STALE_HOSTS_MIN and len(others) > STALE_SHARE * len(regular)
    hint = "Look on that host: is the spool mounted, is its pipeline release right, does it still exist?"
    return judged("hosts", Level.WARN if servers or many else Level.PASS, value, hint)


def _never_rests(host: HostSeen) -> bool:
    """Whether a host wrote every single day until its last one: the farm's sampler, not somebody's workstation."""
    return host.days == host.span_days >= WINDOW_DAYS


def check_lag(found: Warehouse, *, daemon_runs: bool) -> Check:
    """From occurred to committed, of what was ingested in the last hour."""
    if not found.lag_events or found.lag_p95_seconds is None:
        return Check("lag", Level.PASS, "nothing ingested in the last hour")
    value = f"p95 {duration(max(0.0, found.lag_p95_seconds))} over {found.lag_events:,} events of the last hour"
    if not daemon_runs:
        return Check("lag", Level.PASS, f"{value}; not judged without piperd")
    hint = "Overloaded, or old files came in (a host that was offline, a restart): look at it again in an hour."
    return judged("lag", grade(found.lag_p95_seconds, LAG_WARN_SECONDS, None), value, hint)


def check_unknown_types(found: Warehouse) -> Check:
    """Did writers send event types that the registry does not know?"""
    if not found.unknown_type_events:
        return Check("unknown_types", Level.PASS, f"none in {WINDOW_DAYS} days")
    value = f"{found.unknown_type_events:,} events in {WINDOW_DAYS} days: {some(found.unknown_types)}"
    hint = "They are kept in silver_events only. If they are meant, a newer piper or its registry must know them."
    return Check("unknown_types", Level.WARN, value, hint)


def check_new_fields(found: Warehouse) -> Check:
    """Do known types carry fields that they did not carry the week before?"""
    if not found.new_fields:
        return Check("new_fields", Level.PASS, f"none in {WINDOW_DAYS} days that the week before did not have")
    named = [f"{new.event_type} {new.field} ({new.hosts} hosts)" for new in found.new_fields]
    hint = "A pipeline release changed what it sends; nothing is lost: the fields stay in payload and metrics."
    return Check("new_fields", Level.WARN, f"since last week: {some(named)}", hint)


def check_contract(found: Warehouse) -> Check:
    """Do known types carry what the registry says?"""
    rate = found.contract_violations / max(1, found.events)
    value = f"{found.contract_violations:,} violations in {found.events:,} events ({WINDOW_DAYS} days)"
    if found.violations_by_type:
        value += f": {some([f'{kind}: {field} {events:,}' for kind, field, events in found.violations_by_type])}"
    hint = "Tell the owner of that tool what its events lack; they are kept, with NULL where a field is missing."
    return judged("contract", grade(rate, VIOLATION_WARN, None), value, hint)


def check_gold(found: Warehouse) -> Check:
    """Does gold have the events that silver has?"""
    if not found.gold_behind:
        return Check("gold", Level.PASS, "in step with silver")
    hint = "Its refresh fails or hangs: see the log for gold_refresh_failed, then run `piper materialize`."
    return Check("gold", Level.WARN, f"{found.gold_behind:,} events behind silver", hint)
