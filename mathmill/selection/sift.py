"""The first pass: every row is read once, judged by itself, and dropped with a reason or spilled for the passes to come.

A row's digest, a hash of the seed, its question and its final text, is all that the passes to come go by: rows of equal
digest are duplicates, and the order of digests is the order of the training set. So neither the order of the inputs nor
the number of processes can show in the result.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from mathmill.selection import filters
from mathmill.selection.arithmetic import wrong_arithmetic
from mathmill.selection.options import Filters
from mathmill.selection.rows import (
    SourceRow,
    TrainingRow,
    answer_text,
    id_of,
    published_message,
    refuse_bad_line,
    texts_of,
)
from mathmill.selection.sources import Piece, Unit, read_piece

DIGEST = 16
"""Bytes of a digest."""
INDEX = np.dtype([("problem", ">u8"), ("first", ">u8"), ("second", ">u8"), ("code", "u1")])
"""A spilled row as the second pass sees it: its problem, the two halves of its digest, and whether it has code."""
_encode = msgspec.json.Encoder().encode
_sha256 = hashlib.sha256


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A line of dropped.jsonl: why the row was left out, and where it stood. `row` is null where it could not be read."""

    reason: str
    where: str
    row: msgspec.Raw


@dataclass(frozen=True)
class Sieve:
    """What the first pass is told, the same for every unit."""

    filters: Filters
    seed: int
    folder: Path
    """Where it spills."""
    order_bits: int
    """2 to this power are the buckets of the final order."""
    problem_bits: int
    keep_drops: bool


@dataclass
class Sifted:
    """What became of a unit: counts by reason, and where its spilled rows are, by bucket."""

    num_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    bad_lines: list[str] = field(default_factory=list)
    """The first few, as FILE:LINE: why."""
    lines: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    """Of every bucket of the order: offset, length and number of rows."""
    index: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Of every bucket of problems: the number of rows before it; at last, of all rows."""


MOST_BAD_LINES = 20


@cache
def judge_of(chosen: Filters) -> Callable[[SourceRow, str, str], tuple[str | None, str]]:
    """The judge of one row: a reason to drop it, or None, and its text as it is kept."""
    count = filters.token_counter(chosen.tokenizer) if chosen.tokenizer else len
    wanted = {"correct": True, "incorrect": False}.get(chosen.keep)
    kinds = {None, *chosen.generation_types}

    def judge(row: SourceRow, question: str, text: str) -> tuple[str | None, str]:
        verdict = row.verdict()
        if wanted is not None and verdict is not wanted:
            return ("not_graded" if verdict is msgspec.UNSET else _REASONS[verdict]), text
        if row.generation_type not in kinds:
            return "generation_type", text
        if chosen.trim_prefix:
            text = filters.without_prefix(text)
        boxes = filters.box_spans(text)
        if chosen.require_box and not boxes:
            return "no_box", text
        if chosen.drop_multi_boxed and len(boxes) > 1:
            return "multi_boxed", text
        if chosen.drop_broken_code and filters.is_broken(text):
            return "broken_code", text
        if chosen.drop_useless_code and filters.is_useless(text, boxes):
            return "useless_code", text
        if chosen.trim:
            text = filters.trimmed(text, boxes)
        if len(text) < chosen.min_solution_characters:
            return "short_solution", text
        if chosen.max_solution_characters is not None and len(text) > chosen.max_solution_characters:
            return "long_solution", text
        if chosen.drop_wrong_arithmetic and wrong_arithmetic(text) is not None:
            return "wrong_arithmetic", text
        if chosen.max_problem_tokens is not None and count(question) > chosen.max_problem_tokens:
            return "long_problem", text
        if chosen.max_solution_tokens is not None and count(text) > chosen.max_solution_tokens:
            return "long_solution", text
        return None, text

    return judge


_REASONS = {True: "correct", False: "incorrect", None: "could_not_tell"}


def sift(number: int, unit: Unit, sieve: Sieve) -> Sifted:
    """Read a unit, judge its rows, and spill those that are fit. UserError for a bad line, unless those are skipped."""
    sifted = Sifted()
    spill = _Spill(sieve, number)
    judge = judge_of(sieve.filters)
    pass_incorrect = sieve.filters.keep == "correct" and not sieve.keep_drops
    prefixes: dict[str, bytes] = {}
    for piece in unit:
        for read in read_piece(piece, pass_incorrect):
            sifted.num_rows += len(read.rows) + read.num_incorrect
            sifted.reasons["incorrect"] += read.num_incorrect
            for place, row in read.rows:
                try:
                    question, text = texts_of(row)
                except ValueError as problem:
                    _bad_line(piece, place, str(problem), sieve, sifted, spill)
                    continue
                assert not isinstance(row, str)
                reason, text = judge(row, question, text)
                if reason is not None:
                    sifted.reasons[reason] += 1
                    if sieve.keep_drops:
                        spill.drop(reason, piece.place(place), _encode(training_row(row, question, text, piece)))
                    continue
                prefix = prefixes.get(question)
                if prefix is None:
                    prefix = prefixes[question] = prefix_of(question, sieve.seed)
                line = _encode(training_row(row, question, text, piece))
                spill.add(prefix, text, line, piece.place(place).encode() if sieve.keep_drops else b"")
    spill.write(sifted)
    return sifted


def prefix_of(question: str, seed: int) -> bytes:
    """Eight bytes that stand for the problem, and eight for the seed."""
    return problem_key(question) + seed.to_bytes(8, "big", signed=True)


def problem_key(question: str) -> bytes:
    """Eight bytes that stand for a problem: its text, since others' rows have no id of it."""
    return hashlib.sha256(question.encode()).digest()[:8]


def training_row(row: SourceRow, question: str, text: str, piece: Piece) -> TrainingRow:
    """The row as a training set has it."""
    verdict = row.verdict()
    expected, predicted, problem_id = row.expected_answer, row.predicted_answer, row.problem_id
    return TrainingRow(
        question=question,
        generated_solution=text,
        expected_answer=expected if isinstance(expected, str) else answer_text(expected),
        predicted_answer=predicted if isinstance(predicted, str) else answer_text(predicted),
        error_message="" if row.error_message == "" else published_message(row),
        is_correct=None if verdict is msgspec.UNSET else verdict,
        dataset=row.dataset or row.problem_source or piece.dataset,
        generation_type=row.generation_type or "without_reference_solution",
        problem_id=problem_id if isinstance(problem_id, str) else id_of(row, question),
    )


def _bad_line(piece: Piece, place: int, why: str, sieve: Sieve, sifted: Sifted, spill: "_Spill") -> None:
    where = piece.place(place)
    if sieve.filters.bad_lines == "refuse":
        refuse_bad_line(where, why)
    sifted.reasons["bad_line"] += 1
    if len(sifted.bad_lines) < MOST_BAD_LINES:
        sifted.bad_lines.append(f"{where}: {why}")
    if sieve.keep_drops:
        spill.drop(f"bad_line: {why}", where, b"null")


class _Spill:
    """The fit rows of a unit by the bucket of their digest, and what is known of each by the bucket of its problem."""

    def __init__(self, sieve: Sieve, number: int):
        self.sieve, self.number = sieve, number
        self._shift = 16 - sieve.order_bits
        self._digests: list[list[bytes]] = [[] for _ in range(1 << sieve.order_bits)]
        self._lines: list[list[bytes]] = [[] for _ in range(1 << sieve.order_bits)]
        self._index: list[bytes] = []
        self._dropped: list[bytes] = []

    def add(self, prefix: bytes, text: str, line: bytes, where: bytes) -> None:
        digest = _sha256(prefix + text.encode()).digest()[:DIGEST]
        bucket = (digest[0] << 8 | digest[1]) >> self._shift
        self._digests[bucket].append(digest)
        self._lines[bucket].append(line + b"\t" + where if where else line)
        self._index.append(prefix[:8] + digest + (b"\1" if filters.has_code(text) else b"\0"))

    def drop(self, reason: str, where: str, row: bytes) -> None:
        self._dropped.append(_encode(Dropped(reason=reason, where=where, row=msgspec.Raw(row))))

    def write(self, sifted: Sifted) -> None:
        places = []
        with open(path_of(self.sieve.folder, self.number, "lines"), "wb") as stream:
            for digests, lines in zip(self._digests, self._lines, strict=True):
                start = stream.tell()
                if lines:
                    stream.write(b"".join(digests))
                    stream.write(b"\n".join(lines))
                places.append((start, stream.tell() - start, len(lines)))
        sifted.lines = np.array(places, np.int64)
        index = np.frombuffer(b"".join(self._index), INDEX)
        buckets = (index["problem"] >> np.uint64(64 - self.sieve.problem_bits)).astype(np.intp)
        if not self.sieve.problem_bits:
            buckets[:] = 0
        index[np.argsort(buckets, kind="stable")].tofile(path_of(self.sieve.folder, self.number, "index"))
        counts = np.bincount(buckets, minlength=1 << self.sieve.problem_bits)
        sifted.index = np.concatenate(([0], np.cumsum(counts)))
        if self._dropped:
            path_of(self.sieve.folder, self.number, "dropped").write_bytes(b"\n".join(self._dropped) + b"\n")


def path_of(folder: Path, number: int, kind: str) -> Path:
    return folder / f"unit-{number:06d}.{kind}"
