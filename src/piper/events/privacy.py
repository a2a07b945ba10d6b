"""User names for readers: with `privacy.mask_users` on, a keyed hash takes their place in everything that readers open.

The key is made once, by `piper init` or whatever opens the data root first, and lies in `state/`, mode 0600, which
readers never mount; so a mask is stable over restarts and dates and cannot be reversed by hashing a list of users.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from piper.files import write_atomic

KEY_BYTES = 32
KEY_FILE = "mask.key"
MASK = "user-[0-9a-f]{16}"
"""What every mask looks like, as a regular expression."""


def load_key(state_root: Path) -> bytes:
    """The masking key of this data root, made on first use. Losing it makes new masks differ from the old ones."""
    path = state_root / KEY_FILE
    if not path.exists():
        write_atomic(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
    return path.read_bytes()


def mask(name: str, key: bytes) -> str:
    """`user-` and 16 hex digits of HMAC-SHA256."""
    return "user-" + hmac.new(key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]
