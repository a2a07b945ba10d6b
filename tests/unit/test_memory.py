"""Large blocks go back to the system when they are freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from piper.memory import return_large_blocks

PROGRAM = """
import os, sys
from piper.memory import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "return":
    assert return_large_blocks()
del (first := [bytearray(16 << 20)])[:]  # from now on glibc takes blocks of this size from its heap
before, large, small = resident(), [], []
for _ in range(16):
    large.append(bytearray(8 << 20))
    large[-1][::4096] = bytes(2048)  # every page of it
    small.append(bytearray(4000))
large.clear()
print((resident() - before) >> 20)
"""


def _kept_mib(argument: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_small_blocks_do_not_hold_large_ones_in_memory() -> None:
    if not return_large_blocks():
        pytest.skip("this C library has no mallopt")
    assert _kept_mib("return") < 16 < 64 < _kept_mib("leave")
