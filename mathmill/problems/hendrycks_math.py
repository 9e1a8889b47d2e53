"""MATH (Hendrycks et al. 2021) as published, a tree of one JSON file a problem in a folder or a tar, or as JSON lines."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mathmill.errors import UserError
from mathmill.problems.load import read_rows
from mathmill.problems.source import SPLITS, answer_type, load_corrections, problem_sha, split_files
from mathmill.records import Problem

_LEVEL = re.compile(r"Level ([1-5])")
_MEMBER = re.compile(r"(?:.*/)?(train|test)/([^/]+)/(\d+)\.json")


class _Row(msgspec.Struct):
    problem: str
    solution: str | None = None
    reference_solution: str | None = None
    expected_answer: str | None = None
    level: int | str | None = None
    type: str | None = None
    subject: str | None = None


def read_math(source: Path) -> dict[str, list[Problem]]:
    """The problems of each split, with ids `math/SPLIT/N`, N counted from 0 in the source's order.

    `source`: the published tree (train/SUBJECT/N.json, in a folder or a tar; taken by subject, then by N), or JSON lines
    (train.jsonl and test.jsonl, or .gz). A problem has the same id only within one of these forms.
    """
    rows = _rows(source)
    empty = {sha for sha, row in load_corrections("math").items() if not row.published}
    return {
        split: [_problem(where, row, split, index, empty) for index, (where, row) in enumerate(rows[split])]
        for split in SPLITS
        if split in rows
    }


def _rows(source: Path) -> dict[str, list[tuple[str, _Row]]]:
    if source.is_file() and re.search(r"\.(tar|tar\.gz|tgz)$", source.name):
        return _tree(_tar_members(source))
    if source.is_dir():
        tree = _tree(_folder_members(source))
        if tree:
            return tree
    return {
        split: [(f"{path}:{number}", row) for number, row in read_rows(path, _Row)]
        for split, path in split_files(source, "MATH").items()
    }


def _tar_members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Place, path in the tree and content of every problem in a tar."""
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() and _MEMBER.fullmatch(member.name) else None
                if stream is not None:
                    yield f"{path}:{member.name}", member.name, stream.read()
    except (tarfile.TarError, OSError, EOFError) as problem:
        raise UserError(f"{path}: cannot be read as a tar: {problem}; fetch it again") from None


def _folder_members(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    for top in (folder, folder / "MATH"):
        for path in top.glob("t*/*/*.json"):
            name = path.relative_to(top).as_posix()
            if _MEMBER.fullmatch(name):
                yield str(path), name, path.read_bytes()


def _tree(members: Iterator[tuple[str, str, bytes]]) -> dict[str, list[tuple[str, _Row]]]:
    decoder = msgspec.json.Decoder(_Row)
    found: dict[str, list[tuple[str, int, str, _Row]]] = {}
    for where, name, content in members:
        match = _MEMBER.fullmatch(name)
        assert match is not None
        split, subject, number = match.groups()
        try:
            row = decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise UserError(f"{where}: not a problem of MATH: {problem}; mend or remove this file") from None
        found.setdefault(split, []).append((subject, int(number), where, row))
    return {
        split: [(where, row) for _, _, where, row in sorted(rows, key=lambda each: each[:2])]
        for split, rows in found.items()
    }


def _problem(where: str, row: _Row, split: str, index: int, empty: set[str]) -> Problem:
    from mathmill.grading.extract import last_box

    solution = row.solution if row.solution is not None else row.reference_solution
    answer = (row.expected_answer or "").strip() or last_box(solution or "")
    if "####" in (solution or "") or (row.level is None and row.subject is None and row.type is None):
        raise UserError(f"{where}: rows look like GSM8K, not MATH (a row of MATH has level and type, and no ####)")
    if not row.problem.strip():
        raise UserError(f"{where}: the problem is empty; mend or remove it")
    if answer is None and problem_sha(row.problem) not in empty:
        raise UserError(f"{where}: the solution has no answer in a closed \\boxed{{}}; mend or remove it")
    return Problem(
        problem_id=f"math/{split}/{index}",
        problem=row.problem.strip(),
        expected_answer=answer,
        dataset="math",
        split=split,
        subject=row.subject or row.type,
        level=_level(where, row.level),
        answer_type=None if answer is None else answer_type(answer),
        reference_solution=solution,
    )


def _level(where: str, level: int | str | None) -> int | None:
    """1 to 5; the published `Level ?` is None."""
    if level is None or level == "Level ?":
        return None
    match = _LEVEL.fullmatch(level if isinstance(level, str) else f"Level {level}")
    if not match:
        raise UserError(f"{where}: level {level!r} is none of Level 1 to Level 5; mend or remove it")
    return int(match[1])
