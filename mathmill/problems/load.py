"""Problems by name (`gsm8k:test`) or from a user's own JSON lines."""

import os
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TypeVar

import msgspec

from mathmill.errors import UserError
from mathmill.paths import shipped
from mathmill.records import Problem, open_lines, short_sha

Row = TypeVar("Row", bound=msgspec.Struct)


_NULL = msgspec.Raw(b"null")


class _Row(msgspec.Struct):
    """A line of a user's file: what may stand in it. Numbers are kept as they were written."""

    problem: str | None = None
    question: str | None = None
    expected_answer: msgspec.Raw = _NULL
    answer: msgspec.Raw = _NULL
    problem_id: str | int | None = None
    dataset: str | None = None
    split: str | None = None
    subject: str | None = None
    level: int | None = None
    answer_type: str | None = None
    reference_solution: str | None = None
    masked_reference_solution: str | None = None


def data_folder() -> Path:
    """Where prepared benchmarks lie: $MATHMILL_DATA, or `data` under the current folder."""
    return Path(os.environ.get("MATHMILL_DATA") or "data")


def load_problems(name: str) -> list[Problem]:
    """The problems of `NAME:SPLIT` (prepared or shipped) or of FILE.jsonl[.gz].

    A file's row needs `problem`; without `expected_answer` nobody knows the answer, without `problem_id` a hash of the
    text stands for it. Raises UserError for an unknown name, and for a bad row by its line number.
    """
    if name.endswith((".jsonl", ".jsonl.gz")):
        path = Path(name)
        return _read(path, dataset=path.name.removesuffix(".gz").removesuffix(".jsonl"), split="")
    dataset, _, split = name.partition(":")
    for folder in _folders():
        path = folder / dataset / f"{split}.jsonl"
        if dataset and split and path.is_file():
            return _read(path, dataset=dataset, split=split)
    known = _known()
    splits = [each for each in known if each.startswith(f"{dataset}:")]
    if splits and not split:
        raise UserError(f"no split in '{name}'; say one of: {', '.join(splits)}")
    raise UserError(
        f"no problems '{name}'. Known: {', '.join(known) or 'none'}, or a FILE.jsonl. "
        f"GSM8K and MATH are prepared by: python pipeline/prepare_data.py gsm8k (or math)"
    )


def evenly_spaced(problems: list[Problem], count: int | None) -> list[Problem]:
    """So many of the problems, from all over the benchmark, since many are sorted by subject or level."""
    if count is None or count >= len(problems):
        return problems
    return [problems[place * len(problems) // count] for place in range(count)]


def _folders() -> list[Path]:
    return [data_folder(), shipped("problems")]


def _known() -> list[str]:
    paths = [path for folder in _folders() for path in folder.glob("*/*.jsonl")]
    return sorted({f"{path.parent.name}:{path.stem}" for path in paths})


def _read(path: Path, *, dataset: str, split: str) -> list[Problem]:
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for number, row in read_rows(path, _Row):
        problem = _problem(f"{path}:{number}", row, dataset, split)
        if problem.problem_id in lines:
            raise UserError(
                f"{path}:{number}: problem_id '{problem.problem_id}' is on line {lines[problem.problem_id]} already; "
                "remove one, or give each its own problem_id"
            )
        lines[problem.problem_id] = number
        problems.append(problem)
    if not problems:
        raise UserError(f'{path}: no problems in it; a line looks like {{"problem": "…", "expected_answer": "…"}}')
    return problems


def _problem(where: str, row: _Row, dataset: str, split: str) -> Problem:
    text = _question(where, row)
    answer = _answer(where, row.expected_answer)
    if answer is None and row.answer != _NULL:
        raise UserError(
            f"{where}: has 'answer' and no 'expected_answer'; if it is the final answer and no worked solution, "
            "rename the field to 'expected_answer'"
        )
    return Problem(
        problem_id=f"sha-{short_sha(text)}" if row.problem_id is None else str(row.problem_id),
        problem=text,
        expected_answer=answer,
        dataset=row.dataset if row.dataset is not None else dataset,
        split=row.split if row.split is not None else split,
        subject=row.subject,
        level=row.level,
        answer_type=row.answer_type,
        reference_solution=row.reference_solution,
        masked_reference_solution=row.masked_reference_solution,
    )


def _question(where: str, row: _Row) -> str:
    if row.problem is not None and row.question is not None and row.problem != row.question:
        raise UserError(f"{where}: 'problem' and 'question' differ; keep the one that is to be solved, as 'problem'")
    text = row.problem if row.problem is not None else row.question
    if text is None or not text.strip():
        raise UserError(f"{where}: no 'problem' in it, or an empty one; write its text there, or remove this line")
    return text


def _answer(where: str, raw: msgspec.Raw) -> str | None:
    """The answer as text: a JSON number is written without an empty fraction, an empty text is no answer."""
    value = bytes(raw)
    if value.startswith(b'"'):
        return msgspec.json.decode(value, type=str).strip() or None
    if value == b"null":
        return None
    text = number_text(value.decode())
    if text is None:
        raise UserError(f"{where}: expected_answer is {value[:40].decode()}; write a text or a number")
    return text


def number_text(text: str) -> str | None:
    """A decimal number as people write it: `3.0` is 3, `1,600` is 1600, `1e3` is 1000; None when it is no number."""
    try:
        number = Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    if abs(number.adjusted()) > 100:
        return text
    digits = f"{number:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if number == 0 else digits


def read_rows(path: Path, kind: type[Row]) -> Iterator[tuple[int, Row]]:
    """Line number and typed row of a JSON-lines file; a malformed line is refused by its number."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in open_lines(path):
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise UserError(f"{path}:{number}: not a problem: {problem}; mend or remove this line") from None
