"""The third pass: a bucket of the final order becomes its part of every file of the training set."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from mathmill.prompts import Prompt
from mathmill.selection.choose import REASONS, TAKEN, Chosen
from mathmill.selection.filters import has_code
from mathmill.selection.formats import FORMATS, asker
from mathmill.selection.sift import DIGEST, Dropped, path_of

_encode = msgspec.json.Encoder().encode
Place = tuple[int, int, int, int]
"""Unit, offset, length and number of rows of a bucket's part of it."""


class Row(msgspec.Struct):
    """What is needed again of a line of train.jsonl."""

    question: str
    generated_solution: str
    dataset: str
    generation_type: str
    problem_id: str


class SftRow(msgspec.Struct, frozen=True):
    """A line of sft.jsonl."""

    problem_id: str
    input: str
    output: str


@dataclass(frozen=True)
class Writing:
    """What the third pass is told, the same for every bucket."""

    folder: Path
    order_bits: int
    chosen: Chosen
    prompt: Prompt
    formats: tuple[str, ...]
    keep_drops: bool


@dataclass
class Gathered:
    """What became of a bucket."""

    num_rows: int = 0
    num_duplicates: int = 0
    kinds: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    """Rows by dataset, generation type, and whether they have code."""


def gather(bucket: int, places: list[Place], writing: Writing) -> Gathered:
    """Write the bucket's rows in order of their digests; of rows that are alike stays the one whose line sorts first."""
    width = 64 - writing.order_bits
    decisions = writing.chosen.decisions(bucket << width, (bucket + 1) << width)
    gathered = Gathered()
    with _Parts(writing, bucket) as parts:
        lines: dict[bytes, bytes] = {}
        for place in places:
            for digest, line in _read(writing.folder, place):
                other = lines.get(digest)
                if other is not None:
                    gathered.num_duplicates += 1
                    line, loser = (other, line) if _row(other) <= _row(line) else (line, other)
                    parts.drop("duplicate", loser)
                lines[digest] = line
        for digest in sorted(lines):
            decision = decisions[digest]
            if decision == TAKEN:
                parts.keep(lines[digest], gathered)
            else:
                parts.drop(REASONS[decision], lines[digest])
    return gathered


def _read(folder: Path, place: Place):
    unit, offset, length, count = place
    with open(path_of(folder, unit, "lines"), "rb") as stream:
        stream.seek(offset)
        content = stream.read(length)
    digests = (content[at : at + DIGEST] for at in range(0, count * DIGEST, DIGEST))
    return zip(digests, content[count * DIGEST :].split(b"\n"), strict=True)


def _row(line: bytes) -> bytes:
    return line.partition(b"\t")[0]


def part_of(folder: Path, bucket: int, name: str) -> Path:
    return folder / f"part-{bucket:04d}.{name}"


class _Parts:
    """The files of a bucket."""

    def __init__(self, writing: Writing, bucket: int):
        self.writing = writing
        names = ["train.jsonl", "sft.jsonl", *(f"{name}.jsonl" for name in writing.formats)]
        names += ["dropped.jsonl"] if writing.keep_drops else []
        self._files: dict[str, IO[bytes]] = {
            name: open(part_of(writing.folder, bucket, name), "wb")  # noqa: SIM115  closed by __exit__
            for name in names
        }
        self._decode = msgspec.json.Decoder(Row).decode
        self._ask = asker(writing.prompt)

    def __enter__(self) -> "_Parts":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._files.values():
            stream.close()

    def keep(self, line: bytes, gathered: Gathered) -> None:
        line = _row(line)
        row = self._decode(line)
        gathered.num_rows += 1
        gathered.kinds[row.dataset, row.generation_type, has_code(row.generated_solution)] += 1
        system, user = self._ask(row.question)
        self._files["train.jsonl"].write(line + b"\n")
        asked = f"{system}\n\n{user}" if system else user
        self._write("sft", SftRow(row.problem_id, asked, row.generated_solution))
        for name in self.writing.formats:
            self._write(name, FORMATS[name](system, user, row.generated_solution))

    def _write(self, name: str, what: object) -> None:
        self._files[f"{name}.jsonl"].write(_encode(what) + b"\n")

    def drop(self, reason: str, line: bytes) -> None:
        if self.writing.keep_drops:
            row, _, where = line.partition(b"\t")
            self._write("dropped", Dropped(reason=reason, where=where.decode(), row=msgspec.Raw(row)))
