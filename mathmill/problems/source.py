"""What the readers of published benchmarks share: which file is which split, corrected answers, kinds of answers."""

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
import yaml
from msgspec.structs import replace

from mathmill.errors import UserError
from mathmill.paths import shipped
from mathmill.records import Problem, short_sha

SPLITS = ("train", "test")
_INTEGER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?\d*\.\d+")
_FRACTION = re.compile(r"[+-]?(\d+ ?/ ?\d+|\\[dt]?frac ?(\{[+-]?\d+\}|\d) ?(\{[+-]?\d+\}|\d))")
_TEXT = re.compile(r"(\\(text|textbf|textit|mbox|mathrm) ?\{[^{}]*\}|[A-Za-z]{2}[A-Za-z .'-]*)")


class Correction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published answer that is wrong, found again by a hash of its problem's text."""

    problem_id: str
    problem_sha: str
    published: str
    corrected: str
    reason: str


def split_files(source: Path, name: str) -> dict[str, Path]:
    """Files of JSON lines by split: `train` and `test` in a folder, or one file that is named after its split."""
    if source.is_file():
        split = source.name.removesuffix(".gz").removesuffix(".jsonl")
        if split not in SPLITS:
            raise UserError(
                f"{source}: the file's name says its split; call it train.jsonl or test.jsonl (or .jsonl.gz)"
            )
        return {split: source}
    found = {}
    for split in SPLITS:
        paths = [path for path in (source / f"{split}.jsonl", source / f"{split}.jsonl.gz") if path.is_file()]
        if len(paths) > 1:
            raise UserError(f"{source}: holds {paths[0].name} and {paths[1].name}; name the one to read with --source")
        if paths:
            found[split] = paths[0]
    if not found:
        what = "is no file or folder" if not source.exists() else "holds neither train.jsonl nor test.jsonl (or .gz)"
        raise UserError(f"{source}: {what}; --source names the published {name} files or the folder they lie in")
    return found


def problem_sha(text: str) -> str:
    """A hash of a problem's text that does not see spaces at its ends or doubled inside."""
    return short_sha(" ".join(text.split()))


def load_corrections(name: str) -> dict[str, Correction]:
    """The project's table of a benchmark's wrong answers, by `problem_sha`."""
    path = shipped("problems") / "corrections" / f"{name}.yaml"
    rows = msgspec.convert(yaml.safe_load(path.read_text()), list[Correction])
    return {row.problem_sha: row for row in rows}


def correct(problems: Iterable[Problem], corrections: dict[str, Correction]) -> tuple[list[Problem], list[str], int]:
    """The problems with known wrong answers put right, the ids of those that were, and how many were right already.

    An answer that is not the one the table calls wrong is left alone: somebody has corrected it already.
    """
    kept, corrected, num_right = [], [], 0
    for problem in problems:
        row = corrections.get(problem_sha(problem.problem))
        if row is not None and (problem.expected_answer or "") == row.published:
            problem = replace(problem, expected_answer=row.corrected, answer_type=answer_type(row.corrected))
            corrected.append(problem.problem_id)
        elif row is not None and problem.expected_answer == row.corrected:
            num_right += 1
        kept.append(problem)
    return kept, corrected, num_right


def answer_type(answer: str) -> str:
    r"""What an answer looks like: integer, decimal, fraction, text, list, matrix, or else expression.

    It looks only: `\frac{4}{2}` is a fraction, and `5,6` a list although somebody may have meant 5.6.
    """
    plain = answer.strip().strip("$").strip()
    if re.fullmatch(r"[+-]?\d{1,3}(\{?,\}?\\?!?\d{3})+", plain) or _INTEGER.fullmatch(plain):
        return "integer"
    for kind, pattern in (("decimal", _DECIMAL), ("fraction", _FRACTION), ("text", _TEXT)):
        if pattern.fullmatch(plain):
            return kind
    if "matrix}" in plain or r"\begin{array}" in plain:
        return "matrix"
    return "list" if "," in plain else "expression"
