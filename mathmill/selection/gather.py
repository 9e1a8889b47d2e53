"""The third pass: a bucket of the final order becomes its part of every file of the training set."""

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from mathmill.prompts import Prompt
from mathmill.selection import choose, spill
from mathmill.selection.choose import REASONS, TAKEN
from mathmill.selection.filters import has_code
from mathmill.selection.formats import FORMATS, asker
from mathmill.selection.rows import TrainingRow
from mathmill.selection.spill import BESIDE, Dropped

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_lines = msgspec.json.Decoder(TrainingRow).decode_lines


@dataclass(frozen=True)
class Writing:
    """What the third pass is told, the same for every bucket."""

    folder: Path
    prompt: Prompt
    formats: tuple[str, ...]
    keep_drops: bool


@dataclass(frozen=True)
class Bucket:
    """A stretch of the final order: where its rows are, and what was decided of them."""

    number: int
    rows: list[spill.Place]
    decisions: list[choose.Place]


Kinds = Counter[tuple[str, str, bool]]
"""Rows by dataset, generation type, and whether they have code."""


def gather(bucket: Bucket, writing: Writing) -> Kinds:
    """Write the bucket's part of every file, in order of the digests; the kinds of the rows that were taken."""
    lines, dropped = _sorted_out(bucket)
    content = b"".join(line + b"\n" for line in lines)
    rows = _decode_lines(content)
    ask = asker(writing.prompt)
    asked = [ask(row.question) for row in rows]
    part_of(writing.folder, bucket.number, "train.jsonl").write_bytes(content)
    for name in ("sft", *writing.formats):
        form = FORMATS[name]
        told = [form(system, user, row) for (system, user), row in zip(asked, rows, strict=True)]
        part_of(writing.folder, bucket.number, f"{name}.jsonl").write_bytes(_encode_lines(told))
    if writing.keep_drops:
        part_of(writing.folder, bucket.number, "dropped.jsonl").write_bytes(_encode_lines(dropped))
    return Counter((row.dataset, row.generation_type, has_code(row.generated_solution)) for row in rows)


def _sorted_out(bucket: Bucket) -> tuple[list[bytes], list[Dropped]]:
    """Lines that are taken, in order of their digests, and the others; of rows that are alike stays the one whose line sorts
    first."""
    decisions = dict(chain.from_iterable(place.read() for place in bucket.decisions))
    found: dict[bytes, bytes] = {}
    dropped: list[Dropped] = []
    for digest, line in chain.from_iterable(place.read() for place in bucket.rows):
        if digest not in decisions:
            continue
        if digest in found:
            found[digest], other = sorted([found[digest], line])
            dropped.append(_dropped("duplicate", other))
        else:
            found[digest] = line
    taken = []
    for digest in sorted(found):
        if decisions[digest] == TAKEN:
            taken.append(found[digest].partition(BESIDE)[0])
        else:
            dropped.append(_dropped(REASONS[decisions[digest]], found[digest]))
    return taken, dropped


def _dropped(reason: str, line: bytes) -> Dropped:
    row, _, place = line.partition(BESIDE)
    return Dropped(reason, msgspec.json.decode(place) if place else "", msgspec.Raw(row))


def part_of(folder: Path, bucket: int, name: str) -> Path:
    return folder / f"part-{bucket:04d}.{name}"
