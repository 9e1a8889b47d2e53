"""Parts: what claimants have settled of a shard, row by row, and the one way from parts to a published shard."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from mathmill.files import publish_once
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import (
    Key,
    SetAside,
    Shard,
    keys_of,
    names_in,
    published,
    quarantined,
    set_aside_file,
    settled_set_aside,
    shard_of,
)
from mathmill.records import Problem, Solution

Row = TypeVar("Row", Solution, SetAside)


def whole_lines(path: Path) -> list[bytes]:
    """All lines but a torn last one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # published and removed by another worker meanwhile
        return []
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def whole_rows(path: Path, kind: type[Row]) -> Iterator[tuple[Key, bytes]]:
    """Key and bytes of every whole row; a torn last line and garbage are passed over, to be made again."""
    decoder = msgspec.json.Decoder(kind)
    for line in whole_lines(path):
        try:
            row = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        yield (row.problem_id, row.sample_index), line


def parts_of(folder: Path, shard: Shard) -> list[Path]:
    """Files `SHARD.K.WORKER.jsonl`, lowest claim first."""
    return sorted(folder.glob(f"{shard.name}.[0-9]*.jsonl"))


def journaled(folder: SetFolder, shard: Shard) -> set[Key]:
    """Rows of a shard that some claimant has already settled, kept or set aside."""
    kept = {key for part in parts_of(folder.parts, shard) for key, _ in whole_rows(part, Solution)}
    return kept | _set_aside(folder, shard).keys()


def publish(folder: SetFolder, shard: Shard, problems: list[Problem]) -> bool:
    """Merge the parts of a shard by key (the lowest claim wins) and publish it, once every row is settled.

    True when the shard is published afterwards, by this call or another worker's.
    """
    path = folder.folder / f"{shard.name}.jsonl"
    keys = keys_of(folder, shard, problems)
    if not path.exists():
        rows: dict[Key, bytes] = {}
        for part in parts_of(folder.parts, shard):
            for key, line in whole_rows(part, Solution):
                rows.setdefault(key, line)
        set_aside = _set_aside(folder, shard)
        if any(key not in rows and key not in set_aside for key in keys):
            return False
        publish_once(path, b"".join(rows[key] for key in keys if key in rows))
    _clear_away(folder, shard, keys)
    return True


def _set_aside(folder: SetFolder, shard: Shard) -> dict[Key, bytes]:
    lines: dict[Key, bytes] = {}
    for part in parts_of(folder.quarantine, shard):
        for key, line in whole_rows(part, SetAside):
            lines.setdefault(key, line)
    return lines


def _clear_away(folder: SetFolder, shard: Shard, keys: list[Key]) -> None:
    """Of a published shard: what it lacks goes to one quarantine file of its own, and then its parts may go.

    What it holds is read from the shard itself, since of two claimants one may have made what the other set aside.
    """
    settled = set_aside_file(folder, shard)
    parts = parts_of(folder.quarantine, shard)
    if parts and not settled.exists():
        made = {key for key, _ in whole_rows(folder.folder / f"{shard.name}.jsonl", Solution)}
        reasons = _set_aside(folder, shard)
        lacking = [key for key in keys if key not in made]
        if any(key not in reasons for key in lacking):  # a part is not to be seen here yet: another worker's turn
            return
        if lacking:
            publish_once(settled, b"".join(reasons[key] for key in lacking))
    for part in parts + parts_of(folder.parts, shard):
        part.unlink(missing_ok=True)


def clear_away_what_is_published(folder: SetFolder, problems: list[Problem]) -> None:
    """Finish what a publisher that was killed left: parts of shards that are published."""
    names = names_in(folder.parts) + names_in(folder.quarantine)
    if names:
        done = published(folder)
        shards = {shard_of(name) for name in names if ".jsonl" in name and not _is_settled(name)}
        for shard in sorted(shard for shard in shards if shard.name in done):
            _clear_away(folder, shard, keys_of(folder, shard, problems))


def _is_settled(name: str) -> bool:
    return shard_of(name).name + ".jsonl" == name


def set_aside_by(folder: SetFolder, shard: Shard) -> list[SetAside]:
    """What a published shard left out: of one whose publisher was killed before it wrote the shard's list, off the claimants'.

    Those go once the shard's own list is there, so that is looked for again.
    """
    if not set_aside_file(folder, shard).exists() and (reasons := _set_aside(folder, shard)):
        made = {key for key, _ in whole_rows(folder.folder / f"{shard.name}.jsonl", Solution)}
        if not set_aside_file(folder, shard).exists():
            return [msgspec.json.decode(line, type=SetAside) for key, line in reasons.items() if key not in made]
    return settled_set_aside(folder, shard)


def reopen(folder: SetFolder) -> None:
    """Ask again for every row of a published shard that was set aside, once."""
    clear_away_what_is_published(folder, folder.load_problems())
    for shard in quarantined(folder, published(folder)):
        if set_aside_by(folder, shard):
            publish_once(folder.reopened / shard.again().name, b"")
