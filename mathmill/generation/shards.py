"""Shards: a block of problems x a block of sample indices, published once, whole, and never replaced.

Rows that were set aside and are asked for again make a further attempt of their shard, `SHARD.r1`: a shard of its own, beside
the one that lacks them.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from mathmill.errors import UserError
from mathmill.generation.sets import SampleSet, SetFolder, set_folders
from mathmill.records import Problem
from mathmill.run import Run

Key = tuple[str, int]
"""Problem id and sample index."""


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """A row that failed for its own reasons: a line of a quarantine file."""

    problem_id: str
    sample_index: int
    reason: str


@dataclass(frozen=True, order=True)
class Shard:
    """First and last problem (places in the set's problem file) and sample index, all inclusive."""

    first_problem: int
    last_problem: int
    first_sample: int
    last_sample: int
    attempt: int = 0
    """0 makes the whole block; each later one what the one before set aside."""

    @property
    def name(self) -> str:
        again = f".r{self.attempt}" if self.attempt else ""
        return (
            f"p{self.first_problem:05d}-{self.last_problem:05d}.s{self.first_sample:03d}-{self.last_sample:03d}{again}"
        )

    @property
    def num_rows(self) -> int:
        """Rows of its block."""
        return (self.last_problem - self.first_problem + 1) * (self.last_sample - self.first_sample + 1)

    def keys(self, problems: list[Problem]) -> list[Key]:
        """Every row of its block, in its order."""
        return [
            (problem.problem_id, sample)
            for problem in problems[self.first_problem : self.last_problem + 1]
            for sample in range(self.first_sample, self.last_sample + 1)
        ]

    def before(self) -> "Shard":
        return replace(self, attempt=self.attempt - 1)

    def again(self) -> "Shard":
        return replace(self, attempt=self.attempt + 1)


_NAME = re.compile(r"p(\d+)-(\d+)\.s(\d+)-(\d+)(?:\.r(\d+))?")


def shard_of(name: str) -> Shard:
    """The shard of this name (a file's name may go on after it)."""
    match = _NAME.match(name)
    if not match:
        raise ValueError(f"not a shard's name: {name}")
    return Shard(*(int(number or 0) for number in match.groups()))


def cut(sample_set: SampleSet, extents: Iterable[int]) -> list[Shard]:
    """All blocks of a set. Each number of samples that was asked for starts new blocks, so that older ones stay."""
    shards, first = [], 0
    for extent in extents:
        for sample in range(first, extent, sample_set.samples_per_shard):
            last_sample = min(sample + sample_set.samples_per_shard, extent) - 1
            for problem in range(0, sample_set.num_problems, sample_set.problems_per_shard):
                last_problem = min(problem + sample_set.problems_per_shard, sample_set.num_problems) - 1
                shards.append(Shard(problem, last_problem, sample, last_sample))
        first = max(first, extent)
    return shards


def published(folder: SetFolder) -> set[str]:
    """Names of the shards that are finished, by name alone."""
    names = (name.removesuffix(".jsonl") for name in names_in(folder.folder) if name.endswith(".jsonl"))
    return {name for name in names if _NAME.fullmatch(name)}


def names_in(folder: Path) -> list[str]:
    """Names of all that lies in a folder of shards, in order; none where there is no folder."""
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        return []


def reopened(folder: SetFolder) -> list[Shard]:
    """The further attempts that were asked for."""
    return [shard_of(name) for name in names_in(folder.reopened) if _NAME.fullmatch(name)]


def all_shards(folder: SetFolder, sample_set: SampleSet) -> list[Shard]:
    """Every shard of a set as it is asked for now."""
    return cut(sample_set, folder.extents()) + reopened(folder)


def left(folder: SetFolder, sample_set: SampleSet) -> list[Shard]:
    """The shards of a set that are not published."""
    done = published(folder)
    return [shard for shard in all_shards(folder, sample_set) if shard.name not in done]


def keys_of(folder: SetFolder, shard: Shard, problems: list[Problem]) -> list[Key]:
    """Every row that a shard must hold or set aside, in its order.

    OSError where the list that a further attempt is made from is not to be seen: it must not be taken for empty.
    """
    if not shard.attempt:
        return shard.keys(problems)
    return [(row.problem_id, row.sample_index) for row in _read_set_aside(set_aside_file(folder, shard.before()))]


def set_aside_file(folder: SetFolder, shard: Shard) -> Path:
    """What a published shard left out, with the reasons, if it left out anything."""
    return folder.quarantine / f"{shard.name}.jsonl"


def settled_set_aside(folder: SetFolder, shard: Shard) -> list[SetAside]:
    """The lines of that file; none where there is no such file."""
    try:
        return _read_set_aside(set_aside_file(folder, shard))
    except FileNotFoundError:
        return []


def _read_set_aside(path: Path) -> list[SetAside]:
    try:
        return [msgspec.json.decode(line, type=SetAside) for line in path.read_bytes().splitlines()]
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: no file of rows that were set aside: {problem}") from None


def quarantined(folder: SetFolder, done: set[str]) -> list[Shard]:
    """The shards among those published (`done`) that may have set rows aside which are not asked for again."""
    again = set(reopened(folder))
    shards = {shard_of(name) for name in names_in(folder.quarantine) if _NAME.match(name)}
    return sorted(shard for shard in shards if shard.name in done and shard.again() not in again)


def published_rows(run: Run) -> int:
    """Rows of all finished blocks of a run, by their names alone."""
    finished = (shard_of(name) for folder in set_folders(run) for name in published(folder))
    return sum(shard.num_rows for shard in finished if not shard.attempt)
