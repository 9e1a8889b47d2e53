"""Rows of solutions as others wrote them, and as a training set has them."""

import msgspec

from mathmill.errors import UserError
from mathmill.records import CodeBlock, short_sha

NOT_EXECUTED = "<not_executed>"
_PUBLISHED_MESSAGES = {
    "": "",
    "not_executed": NOT_EXECUTED,
    "timeout": "timeout",
    "no_result": "Result is not defined",
    "max_code_executions": "Max code executions reached",
}
"""Our closed list of messages as the published pipeline spells them (spec of OpenMathInstruct-1, 1.1 and 1.9)."""


class TrainingRow(msgspec.Struct, frozen=True, gc=False):
    """A line of train.jsonl: the published columns in their order, and the problem's id."""

    question: str
    generated_solution: str
    expected_answer: str | None
    predicted_answer: str | None
    error_message: str
    is_correct: bool | None
    dataset: str
    generation_type: str
    problem_id: str


COLUMNS = TrainingRow.__struct_fields__


class SourceRow(msgspec.Struct, gc=False):
    """What is read of a line, whoever wrote it: our solutions, NeMo-Skills' output files, the published datasets."""

    # in the order of our own lines: the decoder looks for a line's next key behind the last one
    problem_id: str | int | None = None
    sample_index: int = -1
    problem: str | None = None
    question: str | None = None
    expected_answer: str | int | float | None = None
    generation: str | None = None
    generated_solution: str | None = None
    code_blocks: msgspec.Raw = msgspec.Raw(b"")
    predicted_answer: str | int | float | None = None
    is_correct: bool | msgspec.UnsetType | None = msgspec.UNSET
    symbolic_correct: bool | msgspec.UnsetType | None = msgspec.UNSET
    error_message: str | None = None
    generation_type: str | None = None
    dataset: str | None = None
    problem_source: str | None = None

    def verdict(self) -> bool | msgspec.UnsetType | None:
        """Whether the answer is right; None: nobody could tell; UNSET: nobody was asked."""
        return self.symbolic_correct if self.is_correct is msgspec.UNSET else self.is_correct


class BadLine(SourceRow, gc=False):
    """Stands in the place of a row that cannot be read."""

    why: str = ""


def texts_of(row: SourceRow) -> tuple[str, str]:
    """Question and solution of what was read. ValueError, which says what is wrong, where it has not both."""
    if isinstance(row, BadLine):
        raise ValueError(row.why)
    question = row.question if row.question is not None else row.problem
    solution = row.generated_solution if row.generated_solution is not None else row.generation
    if not question:
        raise ValueError("no `question` or `problem` in it, or an empty one")
    if solution is None:
        raise ValueError("no `generated_solution` or `generation` in it")
    return question, solution


def training_row(row: SourceRow, question: str, text: str) -> TrainingRow:
    """The row as a training set has it."""
    verdict = row.is_correct if row.is_correct is not msgspec.UNSET else row.symbolic_correct
    expected, predicted, problem_id = row.expected_answer, row.predicted_answer, row.problem_id
    return TrainingRow(
        question,
        text,
        expected if isinstance(expected, str) else answer_text(expected),
        predicted if isinstance(predicted, str) else answer_text(predicted),
        "" if row.error_message == "" else published_message(row),
        None if verdict is msgspec.UNSET else verdict,
        row.dataset or row.problem_source or "",
        row.generation_type or "without_reference_solution",
        problem_id if isinstance(problem_id, str) else id_of(row, question),
    )


def published_message(row: SourceRow) -> str:
    """The error message in the published spelling; that of a failed block names its exception."""
    message = row.error_message
    if message == "":
        return ""
    if message is None:
        return NOT_EXECUTED if not row.code_blocks else ""
    if not row.code_blocks:  # others' rows have the published spelling already; ours always have blocks, if none
        return message
    if message in _PUBLISHED_MESSAGES:
        return _PUBLISHED_MESSAGES[message]
    if message in ("error", "syntax_error"):
        kind = "Execution" if message == "error" else "Syntax"
        return f"{kind} error: {_last_line(row.code_blocks)}"
    return f"Undefined error: {message}"


def _last_line(blocks: msgspec.Raw) -> str:
    """The last line of what the last block showed: the exception."""
    try:
        decoded = msgspec.json.decode(blocks, type=list[CodeBlock])
    except msgspec.DecodeError:
        return ""
    shown = decoded[-1].output.strip() if decoded else ""
    return shown.rpartition("\n")[2]


def answer_text(answer: str | int | float | None) -> str | None:
    """An answer as text: a number without an empty fraction."""
    if isinstance(answer, float):
        return f"{answer:.0f}" if answer.is_integer() and abs(answer) < 1e15 else repr(answer)
    return answer if answer is None or isinstance(answer, str) else str(answer)


def id_of(row: SourceRow, question: str) -> str:
    """The problem's own id, or a hash of its text."""
    return f"sha-{short_sha(question)}" if row.problem_id is None else str(row.problem_id)


def refuse_bad_line(where: str, why: str) -> None:
    raise UserError(f"{where}: {why}; mend or remove this line, or pass over such lines with --bad_lines skip")
