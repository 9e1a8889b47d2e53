"""Shards: a block of problems x a block of sample indices, published once, whole, and never replaced."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mathmill.files import publish_once
from mathmill.generation.sets import SampleSet, SetFolder, set_folders
from mathmill.records import Problem
from mathmill.run import Run

Key = tuple[str, int]
"""Problem id and sample index."""


@dataclass(frozen=True, order=True)
class Shard:
    """First and last problem (places in the set's problem file) and sample index, all inclusive."""

    first_problem: int
    last_problem: int
    first_sample: int
    last_sample: int

    @property
    def name(self) -> str:
        return f"p{self.first_problem:05d}-{self.last_problem:05d}.s{self.first_sample:03d}-{self.last_sample:03d}"

    @property
    def num_rows(self) -> int:
        return (self.last_problem - self.first_problem + 1) * (self.last_sample - self.first_sample + 1)

    def keys(self, problems: list[Problem]) -> list[Key]:
        """Every row that the shard must hold, in its order."""
        return [
            (problem.problem_id, sample)
            for problem in problems[self.first_problem : self.last_problem + 1]
            for sample in range(self.first_sample, self.last_sample + 1)
        ]


_NAME = re.compile(r"p(\d+)-(\d+)\.s(\d+)-(\d+)")


def shard_of(name: str) -> Shard:
    """The shard of this name (a file's name may go on after it)."""
    match = _NAME.match(name)
    if not match:
        raise ValueError(f"not a shard's name: {name}")
    return Shard(*map(int, match.groups()))


def cut(sample_set: SampleSet, extents: Iterable[int]) -> list[Shard]:
    """All shards of a set. Each number of samples that was asked for starts new blocks, so that older ones stay."""
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
    return {path.name.removesuffix(".jsonl") for path in folder.folder.glob("p*.jsonl") if _NAME.match(path.name)}


def left(folder: SetFolder, sample_set: SampleSet) -> list[Shard]:
    """The shards of a set that are not published."""
    done = published(folder)
    return [shard for shard in cut(sample_set, folder.extents()) if shard.name not in done]


def published_rows(run: Run) -> int:
    """Rows of all finished shards of a run, by their names alone."""
    return sum(shard_of(name).num_rows for folder in set_folders(run) for name in published(folder))


class _Key(msgspec.Struct):
    problem_id: str
    sample_index: int


_key_decoder = msgspec.json.Decoder(_Key)


def keyed_lines(path: Path) -> Iterator[tuple[Key, bytes]]:
    """Key and bytes of every whole row of a part; a torn last line and garbage are passed over, to be made again."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # published and removed by another worker meanwhile
        return
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            key = _key_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        yield (key.problem_id, key.sample_index), line


def _of_shard(folder: Path, shard: Shard) -> list[Path]:
    """Files `SHARD.K.WORKER.jsonl`, lowest claim first."""
    return sorted(folder.glob(f"{shard.name}.*.jsonl"))


def journaled(folder: SetFolder, shard: Shard) -> set[Key]:
    """Rows of a shard that some claimant has already settled, kept or quarantined."""
    parts = _of_shard(folder.parts, shard) + _of_shard(folder.quarantine, shard)
    return {key for part in parts for key, _ in keyed_lines(part)}


def publish(folder: SetFolder, shard: Shard, problems: list[Problem]) -> bool:
    """Merge the parts of a shard by key (the lowest claim wins) and publish it, once every row is settled.

    True when the shard is published afterwards, by this call or another worker's.
    """
    path = folder.folder / f"{shard.name}.jsonl"
    parts = _of_shard(folder.parts, shard)
    rows: dict[Key, bytes] = {}
    for part in parts:
        for key, line in keyed_lines(part):
            rows.setdefault(key, line)
    set_aside = {key for part in _of_shard(folder.quarantine, shard) for key, _ in keyed_lines(part)}
    keys = shard.keys(problems)
    if not path.exists():
        if any(key not in rows and key not in set_aside for key in keys):
            return False
        publish_once(path, b"".join(rows[key] for key in keys if key in rows))
    for part in parts:
        part.unlink(missing_ok=True)
    return True


@dataclass(frozen=True)
class SetProgress:
    """How far a sample set is, in rows, read from the names of files and the lines of open parts."""

    name: str
    num_rows: int
    num_done: int
    num_in_parts: int
    num_quarantined: int


def set_progress(folder: SetFolder) -> SetProgress:
    sample_set = folder.load()
    shards = cut(sample_set, folder.extents())
    done = published(folder)
    in_parts: dict[str, set[Key]] = {}
    for part in folder.parts.glob("p*.jsonl"):
        shard = shard_of(part.name).name
        if shard not in done:
            in_parts.setdefault(shard, set()).update(key for key, _ in keyed_lines(part))
    quarantined = {key for part in folder.quarantine.glob("p*.jsonl") for key, _ in keyed_lines(part)}
    return SetProgress(
        name=sample_set.name,
        num_rows=sum(shard.num_rows for shard in shards),
        num_done=sum(shard.num_rows for shard in shards if shard.name in done),
        num_in_parts=sum(map(len, in_parts.values())),
        num_quarantined=len(quarantined),
    )


def progress(run: Run) -> list[SetProgress]:
    """How far every sample set of a run is."""
    return [set_progress(folder) for folder in set_folders(run)]
