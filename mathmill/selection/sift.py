"""The first pass: every row is read once, judged by itself, and dropped with a reason or spilled for the passes to come.

A row's digest, a hash of the seed, its question and its final text, is all that the passes to come go by: rows of equal
digest are duplicates, and the order of digests is the order of the training set. So neither the order of the inputs nor
the number of processes can show in the result.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import msgspec

from mathmill.selection import filters
from mathmill.selection.arithmetic import wrong_arithmetic
from mathmill.selection.filters import usual_text
from mathmill.selection.options import Filters
from mathmill.selection.rows import SourceRow, TrainingRow, refuse_bad_line, texts_of, training_row
from mathmill.selection.sources import Piece, Unit, read_piece
from mathmill.selection.spill import KEY, Buckets, Spill, Spilled

_sha256 = hashlib.sha256


@dataclass(frozen=True)
class Sieve:
    """What the first pass is told, the same for every unit."""

    filters: Filters
    seed: int
    folder: Path
    """Where it spills."""
    buckets: Buckets
    keep_drops: bool


@dataclass
class Sifted:
    """What became of a unit: counts by reason, and where its fit rows are."""

    num_rows: int = 0
    num_incorrect: int = 0
    """Rows that nothing more was asked about; `reasons` are those of others."""
    reasons: Counter[str] = field(default_factory=Counter)
    bad_lines: list[tuple[Piece, int, str]] = field(default_factory=list)
    """The first few: their number in their piece, and what is wrong."""
    spilled: list[Spilled] = field(default_factory=list)


MOST_BAD_LINES = 20


VERDICTS = {"correct": True, "incorrect": False}
"""The verdict that is asked for; of `all`, none."""


@cache
def judge_of(chosen: Filters) -> Callable[[SourceRow, str, str], tuple[str | None, str]]:
    """The judge of one row: a reason to drop it, or None, and its text as it is kept."""
    count = filters.token_counter(chosen.tokenizer) if chosen.tokenizer else len
    wanted = VERDICTS.get(chosen.keep)
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
    sifting = _Sifting(number, sieve)
    for piece in unit:
        sifting.read(piece)
    return sifting.finished()


class _Sifting:
    """The first pass over a unit."""

    def __init__(self, number: int, sieve: Sieve):
        self.sieve, self.sifted = sieve, Sifted()
        self._spill = Spill(sieve.folder / f"unit-{number:06d}", sieve.buckets)
        self._seed = sieve.seed.to_bytes(8, "big", signed=True)
        self._judge = judge_of(sieve.filters)
        self._wanted = VERDICTS.get(sieve.filters.keep)
        self._kinds = {None, *sieve.filters.generation_types}
        self._looks_at_usual = sieve.filters.look_at_usual()

    def read(self, piece: Piece) -> None:
        passes_over = self.sieve.filters.keep == "correct" and not self.sieve.keep_drops
        for read in read_piece(piece):
            self.sifted.num_rows += len(read.rows)
            rows = enumerate(read.rows, read.first)
            if passes_over:  # most rows are wrong, and nothing more is asked about those
                wanted = [
                    (number, row)
                    for number, row in rows
                    if row.is_correct is not False or not row.problem or row.generation is None
                ]
                self.sifted.num_incorrect += len(read.rows) - len(wanted)
                self._sift(piece, wanted)
            else:
                self._sift(piece, rows)

    def finished(self) -> Sifted:
        self._spill.write()
        self.sifted.spilled = self._spill.written
        return self.sifted

    def _sift(self, piece: Piece, rows: Iterable[tuple[int, SourceRow]]) -> None:
        """Judge rows, each with its number, and hold those that are fit."""
        trim, keep_drops = self.sieve.filters.trim, self.sieve.keep_drops
        judge, wanted, kinds, looks_at_usual = self._judge, self._wanted, self._kinds, self._looks_at_usual
        fit: list[TrainingRow] = []
        keys: list[bytes] = []
        digests: list[bytes] = []
        places: list[str] = []
        for number, row in rows:
            try:
                question, text = texts_of(row)
            except ValueError as problem:
                self._bad_line(piece, number, str(problem))
                continue
            if looks_at_usual or row.is_correct is not wanted or row.generation_type not in kinds:
                final = None
            else:
                final = usual_text(text, trim)
            if final is None:
                reason, final = judge(row, question, text)
                if reason is not None:
                    self.sifted.reasons[reason] += 1
                    if keep_drops:
                        self._spill.drop(reason, piece.place(number), training_row(row, question, final))
                    continue
            fit.append(training_row(row, question, final))
            key = problem_key(question)
            keys.append(key)
            digests.append(_sha256(key + self._seed + final.encode()).digest())
            if keep_drops:
                places.append(piece.place(number))
        self._spill.add(fit, keys, digests, places)

    def _bad_line(self, piece: Piece, number: int, why: str) -> None:
        if self.sieve.filters.bad_lines == "refuse":
            refuse_bad_line(piece.place(number), why)
        self.sifted.reasons["bad_line"] += 1
        if len(self.sifted.bad_lines) < MOST_BAD_LINES:
            self.sifted.bad_lines.append((piece, number, why))
        if self.sieve.keep_drops:
            self._spill.drop(f"bad_line: {why}", piece.place(number), None)


@lru_cache(maxsize=1 << 16)
def problem_key(question: str) -> bytes:
    """Eight bytes that stand for a problem: its text, since others' rows have no id of it."""
    return _sha256(question.encode()).digest()[:KEY]
