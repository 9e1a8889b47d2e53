"""The second pass: which of the fit rows are taken, decided on digests alone, problem by problem.

Fair down-sampling takes one solution of every problem, then a second of every one that has it, and so on, until there are
enough; which one is second is drawn by the digest, and so are the problems of the last, unfinished round. Random
down-sampling takes the rows of the lowest digests. Both are functions of the set of rows and the seed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mathmill.selection.options import Choice, CodePreference
from mathmill.selection.sift import INDEX, path_of

TAKEN, CODE_PREFERENCE, COVERAGE, DOWNSAMPLED = 0, 1, 2, 3
REASONS = {CODE_PREFERENCE: "code_preference", COVERAGE: "coverage", DOWNSAMPLED: "downsampled"}
RANKED = np.dtype([("first", "u8"), ("second", "u8"), ("rank", "i4"), ("decision", "u1")])
"""A row, the how-manieth solution of its problem it is, and what was decided."""
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
    rows = index[np.lexsort((index["second"], index["first"], index["problem"]))]
    problem, first, second = (rows[name].astype(np.uint64) for name in ("problem", "first", "second"))
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (problem[1:] != problem[:-1]) | (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    problem, first, second, code = problem[is_new], first[is_new], second[is_new], rows["code"][is_new].astype(bool)
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
class Index:
    """The index of all units, by bucket of problems."""

    folder: Path
    counts: np.ndarray
    """[unit, bucket + 1]: rows of the unit before the bucket; at last all."""

    @property
    def num_buckets(self) -> int:
        return self.counts.shape[1] - 1

    def read(self, bucket: int) -> np.ndarray:
        parts = [
            np.fromfile(path_of(self.folder, unit, "index"), INDEX, count=end - start, offset=start * INDEX.itemsize)
            for unit, (start, end) in enumerate(self.counts[:, bucket : bucket + 2].tolist())
            if end > start
        ]
        return np.concatenate(parts) if parts else np.empty(0, INDEX)


@dataclass
class Chosen:
    """What was decided, on disk in order of the digests, a file a bucket of problems."""

    folder: Path
    num_buckets: int
    reasons: Counter[str]

    def decisions(self, low: int, high: int) -> dict[bytes, int]:
        """Digest to decision, of the rows whose first half of the digest is at least `low` and below `high`."""
        found: dict[bytes, int] = {}
        for bucket in range(self.num_buckets):
            rows = np.load(self.folder / f"chosen-{bucket:04d}.npy", mmap_mode="r")
            start, end = (np.searchsorted(rows["first"], np.uint64(edge)) for edge in (low, min(high, 2**64 - 1)))
            part = rows[start : end if high < 2**64 else len(rows)]
            digests = np.empty((len(part), 2), ">u8")
            digests[:, 0], digests[:, 1] = part["first"], part["second"]
            joined = digests.tobytes()
            found.update(
                (joined[place : place + 16], decision)
                for place, decision in zip(range(0, len(joined), 16), part["decision"].tolist(), strict=True)
            )
        return found


def choose(index: Index, choice: Choice, limits: Limits | None) -> Chosen:
    """Decide about every row, one bucket of problems at a time."""
    counts: Counter[int] = Counter()
    for bucket in range(index.num_buckets):
        rows = ranked(index.read(bucket), choice.code_preference, limits)
        if choice.downsample == "random":
            rows["rank"] = 0
        np.save(index.folder / f"ranked-{bucket:04d}.npy", rows)
        ranks, numbers = np.unique(rows["rank"][rows["decision"] == TAKEN], return_counts=True)
        counts.update(dict(zip(ranks.tolist(), numbers.tolist(), strict=True)))
    cut = _find_cut(index, counts, choice.num_samples)
    reasons: Counter[str] = Counter()
    for bucket in range(index.num_buckets):
        rows = _load(index, bucket)
        if cut is not None:
            rows["decision"][(rows["decision"] == TAKEN) & ~cut.takes(rows, rows["rank"])] = DOWNSAMPLED
        reasons.update({reason: int((rows["decision"] == number).sum()) for number, reason in REASONS.items()})
        np.save(index.folder / f"chosen-{bucket:04d}.npy", rows[np.lexsort((rows["second"], rows["first"]))])
        (index.folder / f"ranked-{bucket:04d}.npy").unlink()
    return Chosen(index.folder, index.num_buckets, +reasons)


def _load(index: Index, bucket: int) -> np.ndarray:
    return np.load(index.folder / f"ranked-{bucket:04d}.npy")


def _find_cut(index: Index, counts: Counter[int], wanted: int | None) -> Cut | None:
    """The last row that is taken; None where all are."""
    if wanted is None or sum(counts.values()) <= wanted:
        return None
    before = 0
    for rank in sorted(counts):
        if before + counts[rank] >= wanted:
            return Cut(rank, *_nth_digest(index, rank, wanted - before))
        before += counts[rank]
    raise AssertionError("there are more rows than are wanted")


def _nth_digest(index: Index, rank: int, number: int) -> tuple[int, int]:
    """The digest of the so-manieth row of this rank: found by a histogram first, so that few are held at once."""

    def of_rank() -> Iterator[np.ndarray]:
        for bucket in range(index.num_buckets):
            rows = _load(index, bucket)
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
