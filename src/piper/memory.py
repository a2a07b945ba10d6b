"""Memory: what the C library keeps of it."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
BLOCK_BYTES = 1024 * 1024


def return_large_blocks() -> bool:
    """Have every block of BLOCK_BYTES and more be given back to the system when it is freed; whether that worked.

    glibc raises that size by itself, up to 32 MiB, to that of the largest block freed so far (mallopt(3)). Slices of a
    spool are then cut from its heaps, where a small block that is still in use keeps everything below it. Other C
    libraries have no such switch; it changes what a process holds, and nothing else.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, BLOCK_BYTES))
    except (AttributeError, OSError):
        return False
