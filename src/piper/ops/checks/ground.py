"""The ground: the spool, the data root, the disks, who may touch what, and whose versions meet here."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import stat
from pathlib import Path

from piper.layout import Layout
from piper.ops.checks import Check, Level, judged
from piper.ops.facts import network_file_system, unwritable
from piper.ops.words import size

GIB = 1 << 30
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 * GIB, 10 * GIB
"""A seal, a gold swap and what DuckDB spills fit into 1 GiB; 10 GiB is weeks of a busy studio, time to react."""


def check_spool(raw_root: Path) -> Check:
    """Can the spool be listed?"""
    try:
        with os.scandir(raw_root) as entries:
            hosts = sum(1 for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        hint = "Check the mount and its permissions, or set paths.raw_root."
        return Check("spool", Level.FAIL, f"{raw_root}: {error.strerror}", hint)
    if not hosts:
        hint = "No host has written yet, or the share is not mounted there."
        return Check("spool", Level.WARN, f"{raw_root} is empty", hint)
    return Check("spool", Level.PASS, f"{raw_root}, {hosts} hosts")


def check_data_root(layout: Layout) -> Check:
    """Do the data root and the state directory take files?"""
    for path in dict.fromkeys((layout.data_root, layout.state)):
        if not path.is_dir():
            return Check("data_root", Level.FAIL, f"{path} is not there", "Run `piper init`, or check the mount.")
        if why := unwritable(path):
            hint = "Check mount, permissions and space; run doctor as the user that piperd runs as."
            return Check("data_root", Level.FAIL, f"{path} cannot be written: {why}", hint)
    return Check("data_root", Level.PASS, f"{layout.data_root} is writable")


def check_disk(layout: Layout) -> Check:
    """Is there room where piper writes?"""
    paths = [path for path in (layout.data_root, layout.state) if path.is_dir()]
    if not paths:
        return Check("disk", Level.PASS, "not judged: there is no data root")
    free, path = min((shutil.disk_usage(path).free, path) for path in paths)
    level = Level.FAIL if free < DISK_FAIL_BYTES else Level.WARN if free < DISK_WARN_BYTES else Level.PASS
    return judged("disk", level, f"{size(free)} free at {path}", "Make room: a full disk stops piper.")


def check_state(layout: Layout) -> Check:
    """Is the manifest on a local disk?"""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return Check("state", Level.PASS, f"{layout.state} (its file system is unknown here)")
    if kind := network_file_system(layout.state, mounts):
        hint = "Set paths.state_root to a local disk: commits get faster, and locks do not depend on the file server."
        return Check("state", Level.WARN, f"{layout.state} is on {kind}", hint)
    return Check("state", Level.PASS, f"{layout.state} is on a local file system")


def check_permissions(layout: Layout) -> Check:
    """Can readers read and nobody else see the state? Are all files the daemon's own?"""
    for path, secret in ((layout.state, 0o007), (layout.state / "mask.key", 0o077)):
        if (status := _look(path)) is not None and status.st_mode & secret:
            hint = f"chmod {'o=' if path.is_dir() else '600'} {path}: it is for piper only."
            return Check("permissions", Level.WARN, f"others can open {path}", hint)
    for path in (layout.data_root, layout.warehouse, layout.silver, layout.catalog, layout.tail, layout.gold):
        if (status := _look(path)) is not None and not _is_shared(status):
            hint = f"chmod g+rX {path}: Grafana runs as another user, in a group that it shares with these files."
            return Check("permissions", Level.WARN, f"only its owner can read {path}", hint)
    owners = _owners(layout)
    if len(owners) > 1:
        told = "; ".join(f"{path.name} belongs to {_user(uid)}" for uid, path in owners.items())
        # Never the whole data root: by default the spool is in it, and belongs to those who write it.
        ours = (layout.silver, layout.warehouse, layout.quarantine.parent, layout.run_logs, layout.state)
        paths = " ".join(shlex.quote(str(path)) for path in ours)
        hint = f"piper ran as another user once: chown -R {_user(next(iter(owners)))} {paths}"
        return Check("permissions", Level.WARN, told, hint)
    return Check("permissions", Level.PASS, f"readers can read, the state is piper's own ({_user(next(iter(owners)))})")


def _is_shared(status: os.stat_result) -> bool:
    """Whether the group or everybody can read it (and enter it, if it is a directory)."""
    wanted = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
    return any(status.st_mode >> shift & wanted == wanted for shift in (0, 3))


def _owners(layout: Layout) -> dict[int, Path]:
    """One path for each user that owns something here; the data root's first."""
    owners: dict[int, Path] = {}
    paths = (layout.data_root, layout.state, layout.manifest, layout.gold_state, layout.catalog, layout.tail)
    for path in (*paths, layout.gold, layout.silver, layout.quarantine, layout.run_logs):
        if (status := _look(path)) is not None:
            owners.setdefault(status.st_uid, path)
    return owners


def _look(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
