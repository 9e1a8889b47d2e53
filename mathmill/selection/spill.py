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
SPILL_LETTERS = 16 << 20
"""So many letters of questions and solutions are held before they are written."""
_encode_lines = msgspec.json.Encoder().encode_lines


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
    """Rows of one bucket, written together."""

    stem: Path
    offset: int
    num_rows: int
    of_lines: int
    of_places: int

    def read(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Digest, line, and where the row stood (empty where that is not kept), of every row."""
        of_digests = self.num_rows * DIGEST
        with open(self.stem.with_suffix(".rows"), "rb") as stream:
            stream.seek(self.offset)
            content = stream.read(of_digests + self.of_lines + self.of_places)
        digests = (content[at : at + DIGEST] for at in range(0, of_digests, DIGEST))
        texts = content[of_digests:-1].split(b"\n")
        stood = texts[self.num_rows :] or [b""] * self.num_rows
        return zip(digests, texts[: self.num_rows], stood, strict=True)


@dataclass(frozen=True)
class Spilled:
    """Rows that were written together. `rows` [bucket of the order, 4]: offset, rows, bytes of their lines and of their
    places; `index` [bucket of problems + 1]: the rows of the file before it."""

    stem: Path
    rows: np.ndarray
    index: np.ndarray

    def place(self, bucket: int) -> "Place | None":
        """Where a bucket's rows are, if it has any."""
        place = Place(self.stem, *self.rows[bucket].tolist())
        return place if place.num_rows else None

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
        self._rows: list[TrainingRow] = []
        self._keys: list[bytes] = []
        self._digests: list[bytes] = []
        self._places: list[str] = []
        self._dropped: list[Dropped] = []

    def add(self, rows: list[TrainingRow], keys: list[bytes], digests: list[bytes], places: list[str]) -> None:
        """Rows that are fit; `places`: where they stood, or none."""
        self._rows += rows
        self._keys += keys
        self._digests += digests
        self._places += places
        self._hold(rows)

    def drop(self, reason: str, place: str, row: TrainingRow | None) -> None:
        """A row that is not fit, for dropped.jsonl."""
        self._dropped.append(Dropped(reason, place, row))
        self._hold([] if row is None else [row])

    def _hold(self, rows: list[TrainingRow]) -> None:
        self._held += sum([len(row.question) + len(row.generated_solution) for row in rows])
        if self._held >= SPILL_LETTERS:
            self.write()

    def write(self) -> None:
        """Write what is held, if anything is."""
        if self._dropped:
            with open(self._stem.with_suffix(".dropped"), "ab") as stream:
                stream.write(_encode_lines(self._dropped))
        if self._rows:
            self._write_fit()
        self._clear()

    def _write_fit(self) -> None:
        index = np.empty(len(self._rows), INDEX)
        index["problem"] = np.frombuffer(b"".join(self._keys), ">u8").reshape(len(index), -1)[:, 0]
        halves = np.frombuffer(b"".join(self._digests), ">u8").reshape(len(index), -1)
        index["first"], index["second"] = halves[:, 0], halves[:, 1]
        index["code"] = [has_code(row.generated_solution) for row in self._rows]
        self.written.append(Spilled(self._stem, self._write_rows(index["first"]), self._write_index(index)))
        self._num_written += len(self._rows)

    def _write_rows(self, first: np.ndarray) -> np.ndarray:
        order, edges = _by_bucket(first, self._buckets.order)
        found = []
        with open(self._stem.with_suffix(".rows"), "ab") as stream:
            for start, end in pairwise(edges):
                chosen, offset = order[start:end], stream.tell()
                lines = _encode_lines([self._rows[each] for each in chosen])
                places = _encode_lines([self._places[each] for each in chosen]) if self._places else b""
                stream.write(b"".join([self._digests[each][:DIGEST] for each in chosen]) + lines + places)
                found.append((offset, len(chosen), len(lines), len(places)))
        return np.array(found, np.int64)

    def _write_index(self, index: np.ndarray) -> np.ndarray:
        order, edges = _by_bucket(index["problem"], self._buckets.problem)
        with open(self._stem.with_suffix(".index"), "ab") as stream:
            index[order].tofile(stream)
        return np.array(edges) + self._num_written


def _by_bucket(keys: np.ndarray, bits: int) -> tuple[list[int], list[int]]:
    """Places by bucket, which is the upper bits of the key, and where each of 2^bits buckets begins in them; at last the end."""
    buckets = (keys >> np.uint64(64 - bits)).astype(np.uint16) if bits else np.zeros(len(keys), np.uint16)
    ends = np.cumsum(np.bincount(buckets, minlength=1 << bits)).tolist()
    return np.argsort(buckets, kind="stable").tolist(), [0, *ends]
