"""A key run: an immutable file of sorted 16-byte keys, in which a batch of keys is looked up without reading it.

    header      4 KiB: magic, version, number of keys, checksums
    blocks      4 KiB each, 256 keys: all upper halves, then all lower halves; the last one is filled up with ones
    index       the upper half of the first key of each block: the only part that is held in memory, 8 bytes a block

Written under another name, fsynced, renamed, its directory fsynced; never changed afterwards. The name ends with the
checksum of the keys, so that a file of the same number from another history is not taken for it. Header and index are
checked when it is opened, the keys when runs are merged; in between each lookup checks the blocks that it looks at
against the index.

The file is mapped into memory: a lookup touches one page a key and gives it back at once, so the process does not grow;
the pages stay in the system's cache as long as it has room for them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from piper.failpoints import failpoint
from piper.files import FILE_MODE, swap_in

BLOCK_KEYS = 256
_BLOCK_BYTES = BLOCK_KEYS * 16
_WORDS = _BLOCK_BYTES // 8
_MAGIC, _VERSION = b"piperkey", 1
_HEADER = struct.Struct("<8sIIQ8s")
"""Magic, version, keys of a block, number of keys, checksum of all blocks; followed by that of itself and the index."""
_SUM_BYTES = 8
_FILL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
LOOKUP_KEYS = 1024
"""Keys that are looked up at a time before the pages that they touched are given back."""
MERGE_BLOCKS = 1024
"""Blocks that are merged, or checked, at a time."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Keys128:
    """Keys as the upper and the lower halves of their 128 bits."""

    high: Words
    low: Words

    def __len__(self) -> int:
        return len(self.high)

    def sorted(self) -> Keys128:
        """In ascending order."""
        order = np.argsort(self.high)
        high = self.high[order]
        if (high[1:] == high[:-1]).any():  # md5 does not do that to us; somebody's own ids may
            order = np.lexsort((self.low, self.high))
            high = self.high[order]
        return Keys128(high, self.low[order])

    def distinct(self) -> Keys128:
        """Each key once; self is sorted."""
        again = (self.high[1:] == self.high[:-1]) & (self.low[1:] == self.low[:-1])
        return self.take(np.concatenate((np.ones(min(1, len(self)), np.bool_), ~again)))

    def take(self, mask: npt.NDArray[np.bool_]) -> Keys128:
        """Those where `mask` is true."""
        return self if mask.all() else Keys128(self.high[mask], self.low[mask])

    def table(self) -> pa.Table:
        """With the columns `high` and `low`."""
        return pa.table({"high": self.high, "low": self.low})

    @staticmethod
    def concatenated(parts: Sequence[Keys128]) -> Keys128:
        """All of them, one after the other."""
        return Keys128(np.concatenate([p.high for p in parts]), np.concatenate([p.low for p in parts]))


class RunDamagedError(Exception):
    """A run is missing, cut off or not what it was; its text says which and what is wrong."""


def _checksum(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=_SUM_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


class Run:
    """An open run. Any threads may look up in it."""

    def __init__(self, path: Path) -> None:
        """Raises RunDamagedError."""
        self.name = path.name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                header = os.pread(fd, _HEADER.size + _SUM_BYTES, 0)
                size = os.fstat(fd).st_size
                self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else None
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise RunDamagedError(f"the key run {path} is missing") from None
        if self._map is None or len(header) < _HEADER.size + _SUM_BYTES:
            raise RunDamagedError(f"the key run {path} is cut off")
        magic, version, block_keys, self.keys, self._sum = _HEADER.unpack_from(header)
        if (magic, version, block_keys) != (_MAGIC, _VERSION, BLOCK_KEYS) or not self.name.endswith(_suffix(self._sum)):
            raise RunDamagedError(f"{path} is not the key run that was written there")
        self._blocks = -(-self.keys // BLOCK_KEYS)
        if size != _BLOCK_BYTES * (1 + self._blocks) + 8 * self._blocks:
            raise RunDamagedError(f"the key run {path} is cut off")
        self._words = np.frombuffer(self._map, np.uint64, self._blocks * _WORDS, _BLOCK_BYTES)
        self.index: Words = np.frombuffer(self._map, np.uint64, offset=_BLOCK_BYTES * (1 + self._blocks)).copy()
        if _checksum(header[: _HEADER.size], self.index.data.cast("B")) != header[_HEADER.size :]:
            raise RunDamagedError(f"the index of the key run {path} is damaged")

    def find(self, keys: Keys128) -> npt.NDArray[np.bool_]:
        """Which of `keys`, sorted, are in the run. Raises RunDamagedError."""
        found = np.zeros(len(keys), np.bool_)
        for start in range(0, len(keys), LOOKUP_KEYS):
            part = slice(start, start + LOOKUP_KEYS)
            found[part] = self._find(Keys128(keys.high[part], keys.low[part]))
        return found

    def _find(self, keys: Keys128) -> npt.NDArray[np.bool_]:
        positions = self.positions(keys.high)
        first, last = int(positions[0]) // BLOCK_KEYS, int(positions[-1]) // BLOCK_KEYS
        found = np.zeros(len(keys), np.bool_)
        (left,) = np.nonzero(positions < self.keys)
        while len(left):
            at = _word(positions[left])
            same_high = self._words[at] == keys.high[left]
            left, at = left[same_high], at[same_high]
            same = self._words[at + BLOCK_KEYS] == keys.low[left]
            found[left[same]] = True
            left = left[~same]  # another key with the same upper half: look at the next one
            positions[left] += 1
            left = left[positions[left] < self.keys]
        self._give_back(max(0, first - 1), last + 2)
        return found

    def positions(self, high: Words) -> npt.NDArray[np.int64]:
        """For each of `high` (any order), how many keys of the run have a smaller upper half."""
        block = np.maximum(np.searchsorted(self.index, high, side="left") - 1, 0)
        start = block * _WORDS
        if (self._words[start] != self.index[block]).any():
            raise RunDamagedError(f"the key run {self.name} is damaged")
        at = start.copy()
        step = BLOCK_KEYS // 2
        while step:
            at += step * (self._words[at + (step - 1)] < high)
            step //= 2
        at += self._words[at] < high
        positions: npt.NDArray[np.int64] = np.minimum(block * BLOCK_KEYS + (at - start), self.keys)
        return positions

    def read(self, start: int, stop: int) -> Keys128:
        """A copy of the keys from `start` to before `stop`, by position."""
        first, last = start // BLOCK_KEYS, -(-stop // BLOCK_KEYS)
        blocks = self._words[first * _WORDS : last * _WORDS].reshape(-1, 2, BLOCK_KEYS)
        mine = slice(start - first * BLOCK_KEYS, stop - first * BLOCK_KEYS)
        part = Keys128(blocks[:, 0].flatten()[mine], blocks[:, 1].flatten()[mine])
        self._give_back(first, last)
        return part

    def verify(self, check: Callable[[], None] = lambda: None) -> None:
        """Read it whole; raises RunDamagedError when its keys are not those that were written."""
        digest = hashlib.blake2b(digest_size=_SUM_BYTES)
        for first in range(0, self._blocks, MERGE_BLOCKS):
            last = min(first + MERGE_BLOCKS, self._blocks)
            digest.update(self._words[first * _WORDS : last * _WORDS].data.cast("B"))
            self._give_back(first, last)
            check()
        if digest.digest() != self._sum:
            raise RunDamagedError(f"the key run {self.name} is damaged")

    def _give_back(self, first: int, last: int) -> None:
        """Take the blocks from `first` to before `last` out of this process's memory; the system may keep them."""
        assert self._map is not None
        start = _BLOCK_BYTES * (1 + first) // mmap.PAGESIZE * mmap.PAGESIZE
        stop = min(_BLOCK_BYTES * (1 + last), len(self._map))
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _word(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the upper halves at `positions` are among the words of all blocks."""
    words: npt.NDArray[np.int64] = positions // BLOCK_KEYS * _WORDS + positions % BLOCK_KEYS
    return words


def _suffix(checksum: bytes) -> str:
    return f"-{checksum.hex()}.run"


def write_run(directory: Path, number: int, parts: Iterable[Keys128]) -> Run | None:
    """Write a run of `parts`, ascending and each key once, durably; None when there is none. Raises OSError.

    Until a manifest names it, it is nobody's: `number` may be used again.
    """
    temporary = directory / f"{number:08d}.tmp"
    digest = hashlib.blake2b(digest_size=_SUM_BYTES)
    index: list[Words] = []
    count = 0
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(fd, "wb") as stream:
        stream.write(bytes(_BLOCK_BYTES))
        for full in _in_blocks(parts):
            words = _as_blocks(full)
            index.append(words[:, 0, 0].copy())
            digest.update(words.data.cast("B"))
            stream.write(words.data.cast("B"))
            count += len(full)
        if not count:
            temporary.unlink()
            return None
        firsts = np.concatenate(index).data.cast("B")
        stream.write(firsts)
        header = _HEADER.pack(_MAGIC, _VERSION, BLOCK_KEYS, count, digest.digest())
        stream.seek(0)
        stream.write(header + _checksum(header, firsts))
        stream.flush()
        failpoint("keys.written")
        os.fsync(stream.fileno())
    path = directory / f"{number:08d}{_suffix(digest.digest())}"
    swap_in(temporary, path)
    return Run(path)


def _in_blocks(parts: Iterable[Keys128]) -> Iterator[Keys128]:
    """The same keys in parts of whole blocks; only the last one may be other than that."""
    rest: list[Keys128] = []
    for part in parts:
        rest.append(part)
        held = sum(map(len, rest))
        whole = held // BLOCK_KEYS * BLOCK_KEYS
        if whole:
            keys = Keys128.concatenated(rest)
            yield Keys128(keys.high[:whole], keys.low[:whole])
            rest = [Keys128(keys.high[whole:], keys.low[whole:])]
    if sum(map(len, rest)):
        yield Keys128.concatenated(rest)


def _as_blocks(keys: Keys128) -> Words:
    """As (block, half, key), the last block filled up."""
    blocks = -(-len(keys) // BLOCK_KEYS)
    words = np.full((2, blocks * BLOCK_KEYS), _FILL, np.uint64)
    words[0, : len(keys)] = keys.high
    words[1, : len(keys)] = keys.low
    return np.ascontiguousarray(words.reshape(2, blocks, BLOCK_KEYS).transpose(1, 0, 2))


def merged(runs: Sequence[Run], without: Keys128, check: Callable[[], None]) -> Iterator[Keys128]:
    """All keys of `runs` but those in `without` (sorted), ascending, a part at a time. Raises RunDamagedError.

    `check` is called between the parts and may raise.
    """
    for run in runs:
        run.verify(check)
    firsts = np.sort(np.concatenate([run.index for run in runs]))
    cuts = np.unique(firsts[MERGE_BLOCKS::MERGE_BLOCKS])
    ends = [np.append(run.positions(cuts), run.keys) for run in runs]
    starts = [np.insert(end[:-1], 0, 0) for end in ends]
    for span in zip(*starts, *ends, strict=True):
        check()
        bounds = zip(runs, span[: len(runs)], span[len(runs) :], strict=True)
        keys = Keys128.concatenated([run.read(int(start), int(stop)) for run, start, stop in bounds])
        keys = keys.sorted().distinct()
        yield keys.take(~_is_in(keys, without))


def _is_in(keys: Keys128, others: Keys128) -> npt.NDArray[np.bool_]:
    """Which of `keys` are among `others`, both sorted."""
    found = np.zeros(len(keys), np.bool_)
    if not len(others):
        return found
    (maybe,) = np.nonzero(np.isin(keys.high, others.high))
    wanted = set(zip(others.high.tolist(), others.low.tolist(), strict=True))
    found[maybe] = [(int(keys.high[i]), int(keys.low[i])) in wanted for i in maybe]
    return found
