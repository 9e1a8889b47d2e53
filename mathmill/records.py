"""Typed lines in files: what a problem, a solution and a grade are, and how they are read and written."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from mathmill.errors import UserError

BlockStatus = Literal["ok", "error", "exit", "timeout", "memory", "output", "crash", "lost"]
FinishReason = Literal["stop", "length", "context", "max_code_executions", "code_error"]
"""Why a solution ended: the model stopped; its tokens, or its context, ran out; blocks ran out; a block failed and
`--stop_on_code_error` is on."""
ErrorMessage = Literal[
    "",
    "not_executed",
    "error",
    "syntax_error",
    "no_result",
    "exit",
    "timeout",
    "memory",
    "output",
    "crash",
    "lost",
    "max_code_executions",
]
"""How the code of a solution went: empty when its last block ran well, `not_executed` when it has no block."""
GenerationType = Literal["without_reference_solution", "reference_solution", "masked_reference_solution"]
MASKING: GenerationType = "reference_solution"
"""That of a candidate for a masked solution: it was shown the solution itself, and has no answer to be graded."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question with its answer. `expected_answer` is None where nobody knows it."""

    problem_id: str
    problem: str
    expected_answer: str | None
    dataset: str
    split: str
    subject: str | None = None
    level: int | None = None
    answer_type: str | None = None
    reference_solution: str | None = None
    masked_reference_solution: str | None = None
    """The reference solution with letters in the place of the numbers that it computes."""


class CodeBlock(msgspec.Struct, frozen=True, kw_only=True):
    """A block that the model wrote, the text it was shown as its output, and how the run ended."""

    code: str
    output: str
    status: BlockStatus


class Solution(msgspec.Struct, frozen=True, kw_only=True):
    """One sample: a line of a shard, keyed by its first two fields."""

    problem_id: str
    sample_index: int
    seed: int
    problem: str
    expected_answer: str | None
    generation: str
    """The full text with code and outputs, without the prompt."""
    code_blocks: list[CodeBlock]
    predicted_answer: str | None
    is_correct: bool | None
    """None: could not tell."""
    grade_rule: str
    error_message: ErrorMessage
    finish_reason: FinishReason
    num_tokens: int
    """Tokens the model generated; the outputs of its code are not counted."""
    generation_type: GenerationType
    prompt: str
    prompt_sha: str
    model: str
    server_kind: str
    seed_honoured: bool | None
    dataset: str
    options_sha: str
    code_sha: str


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """Is this answer that answer (None: could not tell), and by which rule."""

    is_correct: bool | None
    rule: str


Record = TypeVar("Record", bound=msgspec.Struct)


def short_sha(content: bytes | str) -> str:
    """Twelve hexadecimal digits that stand for the content."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:12]


def line_of(record: msgspec.Struct) -> bytes:
    """The record as one JSON line, newline included."""
    return msgspec.json.encode(record) + b"\n"


def lines_of(records: Iterable[msgspec.Struct]) -> bytes:
    """The records as JSON lines."""
    return b"".join(map(line_of, records))


def open_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line of a plain or gzipped file that is not blank."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from None


def read_records(path: Path, kind: type[Record]) -> Iterator[Record]:
    """The records of a JSON-lines file. A malformed line is refused by its number."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in open_lines(path):
        try:
            yield decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise UserError(f"{path}:{number}: not a {kind.__name__}: {problem}; mend or remove this line") from None


def cut_torn_tail(path: Path) -> None:
    """Drop what follows the last newline: a line that a killed writer left half-written."""
    with open(path, "rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            stream.seek(start)
            newline = stream.read(end - start).rfind(b"\n")
            if newline >= 0:
                stream.truncate(start + newline + 1)
                return
            end = start
        stream.truncate(0)
