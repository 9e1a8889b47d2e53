"""The second pass: which of the fit rows are taken, decided on digests alone, problem by problem.

Fair down-sampling takes one solution of every problem, then a second of every one that has it, and so on, until there are
enough; which one is second is drawn by the digest, and so are the problems of the last, unfinished round. Random
down-sampling takes the rows of the lowest digests. Both are functions of the set of rows and the seed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mathmill.selection.options import Choice, CodePreference
from mathmill.selection.spill import INDEX, Buckets, Spilled, whole_digests

TAKEN, CODE_PREFERENCE, COVERAGE, DOWNSAMPLED = 0, 1, 2, 3
REASONS = {CODE_PREFERENCE: "code_preference", COVERAGE: "coverage", DOWNSAMPLED: "downsampled"}
RANKED = np.dtype([("first", "u8"), ("second", "u8"), ("rank", "i4"), ("decision", "u1")])
"""A row, the how-manieth solution of its problem it is, and what was decided."""
DECIDED = np.dtype([("digest", "V16"), ("decision", "u1")])
Limits = dict[int, int]
"""Problem key to the most rows that are taken of it, where another set's coverage is matched."""


@dataclass(frozen=True)
class Cut:
    """The last row that is taken: rows of a lower rank are, and those of this rank up to this digest."""

    rank: int
    first: int
    second: int

    def takes(self, rows: np.ndarray, rank: np.ndarray) -> np.ndarray:
        below = (rows["first"] < self.first) | ((rows["first"] == self.first) & (rows["second"] <= self.second))
        return (rank < self.rank) | ((rank == self.rank) & below)


def ranked(index: np.ndarray, preference: CodePreference, limits: Limits | None) -> np.ndarray:
    """The different rows of some whole problems, in order of their digests: their rank, and what is decided already."""
    columns = [np.ascontiguousarray(index[name]) for name in ("problem", "first", "second", "code")]
    order = np.lexsort(columns[2::-1])
    problem, first, second, code = (column[order] for column in columns)
    is_new = np.ones(len(index), bool)
    is_new[1:] = (problem[1:] != problem[:-1]) | (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    problem, first, second, code = problem[is_new], first[is_new], second[is_new], code[is_new]
    found = np.zeros(len(problem), RANKED)
    found["first"], found["second"] = first, second
    if not len(found):
        return found
    starts = np.flatnonzero(np.concatenate(([True], problem[1:] != problem[:-1])))
    group = np.cumsum(np.concatenate(([False], problem[1:] != problem[:-1])))
    unwanted = ~code & _wants_code_alone(code, starts, preference)[group]
    found["decision"][unwanted] = CODE_PREFERENCE
    found["rank"] = _ranks(~unwanted, starts, group)
    if limits is not None:
        most = np.array([limits.get(int(key), 0) for key in problem[starts]])[group]
        found["decision"][~unwanted & (found["rank"] >= most)] = COVERAGE
    return found


def _wants_code_alone(code: np.ndarray, starts: np.ndarray, preference: CodePreference) -> np.ndarray:
    """Of every problem: whether its solutions without code are left out."""
    with_code = np.add.reduceat(code.astype(np.int64), starts)
    total = np.diff(np.append(starts, len(code)))
    if preference == "all":
        return np.ones(len(starts), bool)
    if preference == "any_code":
        return with_code > 0
    if preference == "majority_code":
        return 2 * with_code > total
    return np.zeros(len(starts), bool)


def _ranks(wanted: np.ndarray, starts: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How many wanted rows of the same problem come before each row."""
    before = np.cumsum(wanted) - wanted
    return before - before[starts][group]


@dataclass(frozen=True)
class Chosen:
    """What was decided of the rows, in order of their digests, a file a bucket of problems."""

    files: list[Path]
    edges: np.ndarray
    """[file, bucket of the order + 1]: rows of the file before the bucket; at last all."""
    reasons: Counter[str]

    def places(self, bucket: int) -> list["Place"]:
        """Where the decisions about a bucket of the order are."""
        edges = self.edges[:, bucket : bucket + 2].tolist()
        return [Place(path, start, end) for path, (start, end) in zip(self.files, edges, strict=True) if end > start]


class Place(NamedTuple):
    """Decisions about rows of one bucket."""

    path: Path
    start: int
    end: int

    def read(self) -> Iterator[tuple[bytes, int]]:
        """Digests and decisions."""
        rows = np.fromfile(self.path, DECIDED, self.end - self.start, offset=self.start * DECIDED.itemsize)
        return zip(rows["digest"].tolist(), rows["decision"].tolist(), strict=True)


def choose(
    spilled: list[Spilled], buckets: Buckets, folder: Path, choice: Choice, limits: Limits | None, keep_drops: bool
) -> Chosen:
    """Decide about every row, one bucket of problems at a time. Without `keep_drops` only those taken are told."""
    reasons: Counter[str] = Counter()
    counts: Counter[int] = Counter()
    files = [folder / f"ranked-{bucket:04d}.npy" for bucket in range(1 << buckets.problem)]
    for bucket, path in enumerate(files):
        index = np.concatenate([np.empty(0, INDEX), *(one.read_index(bucket) for one in spilled)])
        rows = ranked(index, choice.code_preference, limits)
        reasons["duplicate"] += len(index) - len(rows)
        if choice.downsample == "random":
            rows["rank"] = 0
        np.save(path, rows)
        ranks, numbers = np.unique(rows["rank"][rows["decision"] == TAKEN], return_counts=True)
        counts.update(dict(zip(ranks.tolist(), numbers.tolist(), strict=True)))
    cut = _find_cut(files, counts, choice.num_samples)
    edges = []
    for path in files:
        rows = np.load(path)
        if cut is not None:
            rows["decision"][(rows["decision"] == TAKEN) & ~cut.takes(rows, rows["rank"])] = DOWNSAMPLED
        reasons.update({reason: int((rows["decision"] == number).sum()) for number, reason in REASONS.items()})
        edges.append(_write_decided(rows if keep_drops else rows[rows["decision"] == TAKEN], path, buckets))
    return Chosen([path.with_suffix(".decided") for path in files], np.array(edges), +reasons)


def _write_decided(rows: np.ndarray, path: Path, buckets: Buckets) -> np.ndarray:
    """Write the rows in the place of what is at `path`; how many stand before each bucket of the order."""
    rows = rows[np.lexsort((rows["second"], rows["first"]))]
    decided = np.empty(len(rows), DECIDED)
    decided["digest"] = whole_digests(rows)
    decided["decision"] = rows["decision"]
    decided.tofile(path.with_suffix(".decided"))
    path.unlink()
    starts = np.arange(1 << buckets.order, dtype=np.uint64) << np.uint64(64 - buckets.order) if buckets.order else [0]
    return np.append(np.searchsorted(rows["first"], starts), len(rows))


def _find_cut(files: list[Path], counts: Counter[int], wanted: int | None) -> Cut | None:
    """The last row that is taken; None where all are."""
    if wanted is None or sum(counts.values()) <= wanted:
        return None
    before = 0
    for rank in sorted(counts):
        if before + counts[rank] >= wanted:
            return Cut(rank, *_nth_digest(files, rank, wanted - before))
        before += counts[rank]
    raise AssertionError("there are more rows than are wanted")


def _nth_digest(files: list[Path], rank: int, number: int) -> tuple[int, int]:
    """The digest of the so-manieth row of this rank: found by a histogram first, so that few are held at once."""

    def of_rank() -> Iterator[np.ndarray]:
        for path in files:
            rows = np.load(path)
            yield rows[(rows["rank"] == rank) & (rows["decision"] == TAKEN)]

    bins = np.zeros(1 << 16, np.int64)
    for rows in of_rank():
        bins += np.bincount((rows["first"] >> np.uint64(48)).astype(np.intp), minlength=1 << 16)
    ends = np.cumsum(bins)
    place = int(np.searchsorted(ends, number))  # the bin that holds the last row that is taken
    near = np.concatenate([rows[rows["first"] >> np.uint64(48) == place] for rows in of_rank()])
    near = near[np.lexsort((near["second"], near["first"]))]
    last = near[number - (int(ends[place - 1]) if place else 0) - 1]
    return int(last["first"]), int(last["second"])
