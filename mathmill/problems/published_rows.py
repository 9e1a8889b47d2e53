"""A benchmark's published rows become problems by the templates of its yaml, without code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mathmill.errors import UserError
from mathmill.problems.benchmark import Benchmark
from mathmill.problems.load import number_text
from mathmill.problems.source import answer_type
from mathmill.records import Problem, open_lines

REQUIRED = ("problem", "expected_answer")
OPTIONAL = ("problem_id", "subject", "level", "answer_type", "reference_solution")
ENDINGS = (".jsonl", ".jsonl.gz", ".json")
Row = dict[str, Any]


def read_published_rows(benchmark: Benchmark, source: Path) -> list[Problem]:
    """The problems of a published file, or of the file of the benchmark's split in a folder. Raises UserError."""
    assert benchmark.source is not None
    path = split_file(source, benchmark)
    templates = compiled(benchmark.source.fields, benchmark.title)
    problems = [_problem(where, row, index, templates, benchmark) for index, (where, row) in enumerate(_rows(path))]
    if len(problems) != len({problem.problem_id for problem in problems}):
        raise UserError(f"{path}: two rows have the same problem_id; mend its template in the benchmark's yaml")
    return problems


def split_file(source: Path, benchmark: Benchmark) -> Path:
    """The source itself, or in a folder SPLIT.jsonl, SPLIT.jsonl.gz, SPLIT.json or the file that is named as published."""
    assert benchmark.source is not None
    if source.is_file():
        return source
    names = [benchmark.split + ending for ending in ENDINGS] + [Path(benchmark.source.url).name]
    for name in names:
        if (source / name).is_file():
            return source / name
    what = "holds none of " + ", ".join(names) if source.is_dir() else "is no file or folder"
    raise UserError(f"{source}: {what}; --source names the published file of {benchmark.title}, or its folder")


def compiled(fields: dict[str, str | list[str]], title: str) -> dict[str, list[jinja2.Template]]:
    """The templates of every field, in the order in which they are tried."""
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    templates: dict[str, list[jinja2.Template]] = {}
    for field, texts in fields.items():
        if field not in REQUIRED + OPTIONAL:
            raise UserError(f"{title}: source.fields has '{field}'. Known: {', '.join(REQUIRED + OPTIONAL)}")
        try:
            templates[field] = [
                environment.from_string(text) for text in ([texts] if isinstance(texts, str) else texts)
            ]
        except jinja2.TemplateError as problem:
            raise UserError(f"{title}: source.fields.{field} is no template: {problem}") from None
    for field in REQUIRED:
        if field not in templates:
            raise UserError(f"{title}: source.fields has no {field}")
    return templates


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Place and row: lines of JSON, a list, or rows by their id, which then have it as `row_id`."""
    if not path.name.endswith(".json"):
        for number, line in open_lines(path):
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise UserError(f"{path}:{number}: no JSON: {problem}; mend or remove this line") from None
            yield f"{path}:{number}", _checked(row, f"{path}:{number}")
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise UserError(f"{path}: no JSON: {problem}") from None
    if isinstance(content, dict):
        for key, row in content.items():
            yield f"{path}: {key}", {"row_id": key, **_checked(row, f"{path}: {key}")}
    elif isinstance(content, list):
        for number, row in enumerate(content):
            yield f"{path}: row {number}", _checked(row, f"{path}: row {number}")
    else:
        raise UserError(f"{path}: neither a list of rows nor rows by id")


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; mend or remove it")
    return row


def _problem(
    where: str, row: Row, index: int, templates: dict[str, list[jinja2.Template]], benchmark: Benchmark
) -> Problem:
    values = {field: _filled(where, field, each, row) for field, each in templates.items()}
    answer = values["expected_answer"] or ""
    answer = number_text(answer) or answer
    if not values["problem"] or not answer:
        missing = "problem" if not values["problem"] else "expected_answer"
        raise UserError(f"{where}: its {missing} is empty, or no template of the benchmark's yaml fits this row")
    level = values.get("level")
    if level is not None and not level.isdigit():
        raise UserError(f"{where}: level {level!r} is no whole number; mend its template in the benchmark's yaml")
    return Problem(
        problem_id=values.get("problem_id") or f"{benchmark.dataset}/{benchmark.split}/{index}",
        problem=values["problem"],
        expected_answer=answer,
        dataset=benchmark.dataset,
        split=benchmark.split,
        subject=values.get("subject"),
        level=None if level is None else int(level),
        answer_type=values.get("answer_type") or answer_type(answer),
        reference_solution=values.get("reference_solution"),
    )


def _filled(where: str, field: str, templates: list[jinja2.Template], row: Row) -> str | None:
    """The first template that the row can fill, stripped; None where none can, or where it is empty."""
    for template in templates:
        try:
            return template.render(row).strip() or None
        except jinja2.UndefinedError:
            continue
        except (jinja2.TemplateError, TypeError, ValueError) as problem:
            raise UserError(f"{where}: the template of {field} fails on this row: {problem}") from None
    return None
