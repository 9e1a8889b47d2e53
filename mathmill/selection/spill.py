"""What the first pass hands to the next two over disk: fit rows by the bucket of the final order that they are in, and what
is decided by, their digests, by the bucket of their problems."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from mathmill.selection.filters import has_code
from mathmill.selection.rows import TrainingRow

DIGEST = 16
"""Bytes of a digest that are kept."""
KEY = 8
"""Bytes of the key of a problem."""
INDEX = np.dtype([("problem", "u8"), ("first", "u8"), ("second", "u8"), ("code", "?")])
"""A fit row as the second pass sees it: its problem, the two halves of its digest, and whether it has code."""
HEAD = np.dtype([("digest", f"V{DIGEST}"), ("size", "u4")])
"""What stands before the lines: each one's digest and bytes."""
BESIDE = b"\t"
"""Between a line and where its row stood, where that is kept. JSON has none."""
SPILL_BYTES = 16 << 20
"""So much is held before it is written."""
WRITTEN_AT_ONCE = 1 << 20
_encode = msgspec.json.Encoder().encode


class Dropped(msgspec.Struct, frozen=True):
    """A line of dropped.jsonl: why the row was left out, and where it stood. `row` is null where it could not be read."""

    reason: str
    where: str
    row: TrainingRow | msgspec.Raw | None


@dataclass(frozen=True)
class Buckets:
    """2 to the power of `order` are the buckets of the final order; `problem`: likewise of problems."""

    order: int
    problem: int


class Place(NamedTuple):
    """Rows of one bucket, written together: where their heads begin in the file, and their lines."""

    path: Path
    num_rows: int
    heads: int
    lines: int
    of_lines: int

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Digest and line of every row."""
        with open(self.path, "rb") as stream:
            stream.seek(self.heads)
            heads = np.frombuffer(stream.read(self.num_rows * HEAD.itemsize), HEAD)
            stream.seek(self.lines)
            content = stream.read(self.of_lines)
        ends = np.cumsum(heads["size"]).tolist()
        lines = [content[start:end] for start, end in pairwise([0, *ends])]
        return zip(heads["digest"].tolist(), lines, strict=True)


@dataclass(frozen=True)
class Spilled:
    """Rows that were written together: first the heads of all, then their lines, both by the bucket of the order.

    Each [buckets + 1], where every bucket begins and at last the end: `heads` and `lines` in bytes of the file, `index` in rows.
    """

    stem: Path
    heads: np.ndarray
    lines: np.ndarray
    index: np.ndarray

    def place(self, bucket: int) -> Place | None:
        """Where a bucket's rows are, if it has any."""
        heads, after_heads = self.heads[bucket : bucket + 2].tolist()
        lines, after_lines = self.lines[bucket : bucket + 2].tolist()
        num_rows = (after_heads - heads) // HEAD.itemsize
        return Place(self.stem.with_suffix(".rows"), num_rows, heads, lines, after_lines - lines) if num_rows else None

    def read_index(self, bucket: int) -> np.ndarray:
        start, end = self.index[bucket : bucket + 2].tolist()
        return np.fromfile(self.stem.with_suffix(".index"), INDEX, count=end - start, offset=start * INDEX.itemsize)


class Spill:
    """Fit rows, held until they are many, then written."""

    def __init__(self, stem: Path, buckets: Buckets):
        self.written: list[Spilled] = []
        self._stem, self._buckets = stem, buckets
        self._num_written = 0
        self._clear()

    def _clear(self) -> None:
        self._held = 0
        self._lines: list[bytes] = []
        self._has_code: list[bool] = []
        self._keys: list[bytes] = []
        self._digests: list[bytes] = []
        self._dropped: list[bytes] = []

    def add(self, rows: list[TrainingRow], keys: list[bytes], digests: list[bytes], places: list[str]) -> None:
        """Rows that are fit; `places`: where they stood, or none."""
        lines = list(map(_encode, rows))
        if places:
            lines = [line + BESIDE + _encode(place) for line, place in zip(lines, places, strict=True)]
        self._lines += lines
        self._has_code += [has_code(row.generated_solution) for row in rows]
        self._keys += keys
        self._digests += digests
        self._hold(lines)

    def drop(self, reason: str, place: str, row: TrainingRow | None) -> None:
        """A row that is not fit, for dropped.jsonl."""
        line = _encode(Dropped(reason, place, row)) + b"\n"
        self._dropped.append(line)
        self._hold([line])

    def _hold(self, lines: list[bytes]) -> None:
        self._held += sum(map(len, lines))
        if self._held >= SPILL_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is held, if anything is."""
        if self._dropped:
            with open(self._stem.with_suffix(".dropped"), "ab") as stream:
                stream.writelines(self._dropped)
        if self._lines:
            self._write_fit()
        self._clear()

    def _write_fit(self) -> None:
        index = np.empty(len(self._lines), INDEX)
        index["problem"] = np.frombuffer(b"".join(self._keys), ">u8")
        halves = np.frombuffer(b"".join(self._digests), ">u8").reshape(len(index), -1)
        index["first"], index["second"] = halves[:, 0], halves[:, 1]
        index["code"] = self._has_code
        self.written.append(Spilled(self._stem, *self._write_rows(index), self._write_index(index)))
        self._num_written += len(index)

    def _write_rows(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, edges = _by_bucket(index["first"], self._buckets.order)
        lines = [self._lines[each] for each in order.tolist()]
        heads = np.empty(len(index), HEAD)
        heads["digest"] = whole_digests(index[order])
        heads["size"] = list(map(len, lines))
        ends = np.concatenate(([0], np.cumsum(heads["size"], dtype=np.int64)))
        with open(self._stem.with_suffix(".rows"), "ab", WRITTEN_AT_ONCE) as stream:
            begin = stream.tell()
            stream.write(heads.tobytes())
            stream.writelines(lines)
        return begin + edges * HEAD.itemsize, begin + heads.nbytes + ends[edges]

    def _write_index(self, index: np.ndarray) -> np.ndarray:
        order, edges = _by_bucket(index["problem"], self._buckets.problem)
        with open(self._stem.with_suffix(".index"), "ab") as stream:
            index[order].tofile(stream)
        return edges + self._num_written


def whole_digests(rows: np.ndarray) -> np.ndarray:
    """The digests of which rows have the two halves."""
    return np.stack([rows["first"], rows["second"]], axis=1).astype(">u8").view(HEAD["digest"])[:, 0]


def _by_bucket(keys: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Places by bucket, which is the upper bits of the key, and where each of 2^bits buckets begins in them; at last the end."""
    buckets = (keys >> np.uint64(64 - bits)).astype(np.uint16) if bits else np.zeros(len(keys), np.uint16)
    ends = np.cumsum(np.bincount(buckets, minlength=1 << bits))
    return np.argsort(buckets, kind="stable"), np.concatenate(([0], ends))
