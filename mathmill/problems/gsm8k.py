"""GSM8K as published (a question, a solution with calculator marks, `#### answer`) or split into fields by someone."""

import re
from pathlib import Path

import msgspec

from mathmill.errors import UserError
from mathmill.problems.load import number_text, read_rows
from mathmill.problems.source import answer_type, split_files
from mathmill.records import Problem

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


class _Row(msgspec.Struct):
    question: str | None = None
    answer: str | None = None
    problem: str | None = None
    reference_solution: str | None = None
    expected_answer: str | None = None


def read_gsm8k(source: Path) -> dict[str, list[Problem]]:
    """The rows of each split in the source's order, with ids `gsm8k/SPLIT/N`, N counted from 0.

    `source`: a folder that holds train.jsonl and test.jsonl (or .gz), or one of them.
    """
    splits: dict[str, list[Problem]] = {}
    for split, path in split_files(source, "GSM8K").items():
        rows = read_rows(path, _Row)
        splits[split] = [_problem(f"{path}:{number}", row, split, index) for index, (number, row) in enumerate(rows)]
    return splits


def _problem(where: str, row: _Row, split: str, index: int) -> Problem:
    text, solution, answer = row.problem, row.reference_solution, row.expected_answer
    if row.question is not None and row.answer is not None:
        text, (solution, answer) = row.question, _parts(where, row.answer)
    if text is None or answer is None:
        raise UserError(f"{where}: no GSM8K row: it needs question and answer, or problem and expected_answer")
    number = number_text(answer)
    if number is None or not text.strip():
        what = "the answer after #### is no number" if text.strip() else "the question is empty"
        raise UserError(f"{where}: {what}: {answer[:40]!r}; mend or remove this line")
    return Problem(
        problem_id=f"gsm8k/{split}/{index}",
        problem=text.strip(),
        expected_answer=number,
        dataset="gsm8k",
        split=split,
        answer_type=answer_type(number),
        reference_solution=solution,
    )


def _parts(where: str, answer: str) -> tuple[str, str]:
    """Solution without calculator marks, and what stands behind the last `####`."""
    solution, mark, final = answer.rpartition("####")
    if not mark:
        raise UserError(f"{where}: no '####' before the final answer; mend or remove this line")
    return _CALCULATOR_MARK.sub("", solution).strip(), final.strip()
