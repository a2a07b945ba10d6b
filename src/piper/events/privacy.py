"""User names for readers: with `privacy.mask_users` on, a keyed hash takes their place in everything that readers open.

The key is made once and lies in `state/`, mode 0600, which readers never mount; so a mask is stable over restarts and
dates and cannot be reversed by hashing a list of users.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from piper.files import write_atomic

KEY_BYTES = 32


def load_key(state_root: Path) -> bytes:
    """The masking key of this data root, made on first use. Losing it makes new masks differ from the old ones."""
    path = state_root / "mask.key"
    if not path.exists():
        write_atomic(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
    return path.read_bytes()


def mask(name: str, key: bytes) -> str:
    """`user-` and 16 hex digits of HMAC-SHA256."""
    return "user-" + hmac.new(key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


def mask_path(path: bytes, key: bytes) -> bytes:
    """A spool path with its user directory, the second component, masked."""
    parts = path.split(b"/")
    parts[1] = os.fsencode(mask(parts[1].decode("utf-8", "backslashreplace"), key))
    return b"/".join(parts)
