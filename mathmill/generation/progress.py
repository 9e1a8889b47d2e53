"""How far a run is, read from the names of files and the leading fields of open parts: quick for millions of rows."""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from mathmill.generation.parts import set_aside_by
from mathmill.generation.sets import SetFolder, set_folders
from mathmill.generation.shards import (
    Shard,
    all_shards,
    cut,
    names_in,
    published,
    quarantined,
    reopened,
    set_aside_file,
    shard_of,
)
from mathmill.run import Run

_LEADING = re.compile(rb'\{"problem_id":("(?:[^"\\]|\\.)*","sample_index":\d+)[,}]')


@dataclass(frozen=True)
class SetProgress:
    """How far a sample set is, in rows. A row that was set aside is done, until it is asked for again."""

    name: str
    num_rows: int
    num_done: int
    num_in_parts: int
    num_quarantined: int


def set_progress(folder: SetFolder) -> SetProgress:
    sample_set = folder.load()
    done = published(folder)
    blocks = cut(sample_set, folder.extents())
    waiting = [shard for shard in reopened(folder) if shard.name not in done]
    num_waiting = sum(num_set_aside(folder, shard.before()) for shard in waiting)
    return SetProgress(
        name=sample_set.name,
        num_rows=sum(shard.num_rows for shard in blocks),
        num_done=sum(shard.num_rows for shard in blocks if shard.name in done) - num_waiting,
        num_in_parts=_rows_in_parts(folder, done),
        num_quarantined=_rows_in_quarantine(folder, done),
    )


def progress(run: Run) -> list[SetProgress]:
    """How far every sample set of a run is."""
    return [set_progress(folder) for folder in set_folders(run)]


@dataclass(frozen=True)
class ShardCounts:
    """Shards of a set by what becomes of them just now."""

    done: int
    at_work: int
    """Claimed by a worker that lives."""
    waiting: int


def shard_counts(folder: SetFolder, live: set[str]) -> ShardCounts:
    """`live`: the names of the workers that live."""
    shards, done = all_shards(folder, folder.load()), published(folder)
    highest: dict[str, int] = {}
    for name in names_in(folder.claims):
        shard, _, number = name.rpartition(".")
        if shard and shard not in done and number.isdigit():
            highest[shard] = max(int(number), highest.get(shard, 0))
    at_work = sum((folder.claims / f"{shard}.{number}").read_text() in live for shard, number in highest.items())
    num_left = sum(shard.name not in done for shard in shards)
    return ShardCounts(done=len(shards) - num_left, at_work=at_work, waiting=num_left - at_work)


def num_set_aside(folder: SetFolder, shard: Shard) -> int:
    """Rows that a published shard left out."""
    try:
        return set_aside_file(folder, shard).read_bytes().count(b"\n")
    except FileNotFoundError:
        return len(set_aside_by(folder, shard))


def _rows_in_parts(folder: SetFolder, done: set[str]) -> int:
    """Rows kept in the parts of shards that are not published; one shard's keys in memory at a time."""
    num_rows = 0
    for shard, names in groupby(names_in(folder.parts), key=_shard_name):
        if shard and shard not in done:
            num_rows += len({key for name in names for key in _leading_keys(folder.parts / name)})
    return num_rows


def _rows_in_quarantine(folder: SetFolder, done: set[str]) -> int:
    settled = sum(num_set_aside(folder, shard) for shard in quarantined(folder, done))
    open_parts = [
        name for name in names_in(folder.quarantine) if (shard := _shard_name(name)) and name != f"{shard}.jsonl"
    ]
    keys = {
        (shard_of(name), key)
        for name in open_parts
        if _shard_name(name) not in done
        for key in _leading_keys(folder.quarantine / name)
    }
    return settled + len(keys)


def _shard_name(name: str) -> str:
    """The shard that a file of parts or quarantine belongs to; empty where it is none."""
    return shard_of(name).name if name.startswith("p") and name.endswith(".jsonl") else ""


def _leading_keys(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as stream:
            matches = [_LEADING.match(line) for line in stream if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
    return [match[1] for match in matches if match]
