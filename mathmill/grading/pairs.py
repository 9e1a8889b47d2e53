"""Files of pairs of answers into files of verdicts: streamed, in order, resumed where a killed run ended."""

import contextlib
import fcntl
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec

from mathmill.errors import UserError
from mathmill.grading.pool import GradingPool, grade_all
from mathmill.records import Grade, cut_torn_tail, open_lines

ROWS_AT_ONCE = 1000
Row = dict[str, msgspec.Raw]
_rows = msgspec.json.Decoder(Row)
_answers = msgspec.json.Decoder(str | int | float | None)


class Verdict(Grade, frozen=True, kw_only=True):
    """What a row gets under `verdict`."""

    policy: str


@dataclass
class Tally:
    """Verdicts counted by what they say and by their rule."""

    rules: Counter[tuple[bool | None, str]] = field(default_factory=Counter)

    def add(self, verdict: Grade) -> None:
        self.rules[verdict.is_correct, verdict.rule] += 1

    def lines(self) -> list[str]:
        """A line for correct, wrong and could not tell, apart, each with its rules."""
        named = ((True, "correct"), (False, "wrong"), (None, "could not tell"))
        return [f"{name:<15}{self._count(each):>12,}  {self._by_rule(each)}".rstrip() for each, name in named]

    def _count(self, is_correct: bool | None) -> int:
        return sum(count for (each, _), count in self.rules.items() if each is is_correct)

    def _by_rule(self, is_correct: bool | None) -> str:
        mine = [(count, rule) for (each, rule), count in self.rules.items() if each is is_correct]
        return ", ".join(f"{rule} {count:,}" for count, rule in sorted(mine, reverse=True))


def grade_file(source: Path, output: Path, pool: GradingPool) -> Tally:
    """Grade the rows of `source` that `output` has not yet, one line of `output` for one of `source`, in order.

    A row needs `expected` and `predicted` (text, number or null); all its other fields stay as they are.
    """
    if not source.is_file():
        raise UserError(f"no file {source}")
    if output.exists() and output.samefile(source):
        raise UserError(f"{output}: is also the file of pairs; name another --output")
    if output.suffix == ".gz":
        raise UserError(f"{output}: verdicts are written as plain JSON lines; name another --output")
    lines = open_lines(source)
    with _opened(output) as stream, progress_bar(source) as advance:
        cut_torn_tail(output)
        tally = _pass_over(lines, source, output, pool.policy)
        advance(sum(tally.rules.values()))
        while chunk := list(islice(lines, ROWS_AT_ONCE)):
            _grade_chunk(chunk, source, stream, pool, tally)
            advance(len(chunk))
        os.fsync(stream.fileno())
    return tally


@contextlib.contextmanager
def _opened(output: Path) -> Iterator[IO[bytes]]:
    """The file, open to append, for one process at a time where the file system has locks."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        stream = open(output, "ab")  # noqa: SIM115  closed below; only its opening is looked at here
    except OSError as problem:
        raise UserError(f"{output} cannot be written: {problem.strerror}; name another --output") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output} is being written by another process; wait for it, or name another --output"
            ) from None
        except OSError:  # no locks on this file system
            pass
        yield stream


def _pass_over(lines: Iterator[tuple[int, bytes]], source: Path, output: Path, policy: str) -> Tally:
    """Leave out the rows that have their verdict; they must be the verdicts of these rows under this policy."""
    tally = Tally()
    for place, written in open_lines(output):
        found = next(lines, None)
        if found is None:
            raise UserError(f"{output}:{place}: has more rows than {source}; name another --output")
        row = _row(output, place, written)
        try:
            verdict = msgspec.json.decode(row.pop("verdict", b"null"), type=Verdict)
        except msgspec.ValidationError:
            raise UserError(f"{output}:{place}: has no verdict; name another --output") from None
        asked = _row(source, *found)
        asked.pop("verdict", None)
        if row != asked:
            raise UserError(f"{output}:{place}: is not the verdict of {source}:{found[0]}; name another --output")
        if verdict.policy != policy:
            raise UserError(f"{output} was graded with policy {verdict.policy}; name another --output, or that policy")
        tally.add(verdict)
    return tally


def _grade_chunk(
    chunk: list[tuple[int, bytes]], source: Path, stream: IO[bytes], pool: GradingPool, tally: Tally
) -> None:
    """Write the verdicts of these rows. A row that cannot be read ends the run after those before it are written."""
    rows, problem = [], None
    for number, line in chunk:
        try:
            row = _row(source, number, line)
            rows.append((row, _answer(row, "predicted", source, number), _answer(row, "expected", source, number)))
        except UserError as found:
            problem = found
            break
    verdicts = grade_all([(predicted, expected) for _, predicted, expected in rows], pool)
    for (row, _, _), verdict in zip(rows, verdicts, strict=True):
        tally.add(verdict)
        kept = Verdict(is_correct=verdict.is_correct, rule=verdict.rule, policy=pool.policy)
        stream.write(msgspec.json.encode({**row, "verdict": kept}) + b"\n")
    stream.flush()
    if problem is not None:
        raise problem


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return _rows.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise UserError(f"{path}:{number}: not a JSON object: {problem}; mend or remove this line") from None


def _answer(row: Row, name: str, path: Path, number: int) -> str | None:
    if name not in row:
        raise UserError(f"{path}:{number}: a row needs `expected` and `predicted`; this one has no `{name}`")
    try:
        answer: Any = _answers.decode(row[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UserError(f"{path}:{number}: `{name}` must be text, a number or null") from None
    return answer if answer is None or isinstance(answer, str) else bytes(row[name]).decode()


@contextlib.contextmanager
def progress_bar(what: Path | str):
    """A function that advances a live line on a terminal; elsewhere it shows nothing."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}  {task.completed:,.0f} rows"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"grading {what}", total=None)
        yield lambda count: shown.advance(task, count)
