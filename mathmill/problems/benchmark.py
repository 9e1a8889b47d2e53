"""Benchmarks: one small yaml each (problems/benchmarks/), read and found by name. problems/benchmarks/README.md has the keys."""

import difflib
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import yaml

from mathmill.errors import UserError
from mathmill.paths import shipped

Fields = dict[str, str | list[str]]
"""Templates that make a field of a problem out of a published row; of a list, the first that the row can fill."""
Result = float | int | str


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the published form is, and how a problem is made of a row of it."""

    url: str
    """Of the file of the benchmark's split. Public addresses change: none of them has been fetched by this project."""
    fields: Fields
    sha256: str | None = None


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Results that somebody published for this benchmark, by decoding and model."""

    source: str
    """Where they stand: a paper and its table, or a page."""
    verdict: Literal["symbolic", "judge"] = "symbolic"
    """What decided whether an answer is right."""
    results: dict[str, dict[str, Result]]
    """By decoding (`greedy`, `majority@50`), then by model: per cent, or right answers as "16/40"."""


class Benchmark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a benchmark's yaml says."""

    title: str
    problems: str
    """NAME:SPLIT, as `--problems` takes it."""
    size: int
    """Problems of the published set: with another number of them, results are not comparable with published ones."""
    licence: str
    prompt: str = "code_sft"
    """What `run_evaluation.py` uses without `--prompt`."""
    policy: str = "default"
    """What counts as the same answer: a grading policy."""
    source: Source | None = None
    """None: it is shipped, or has a reader of its own (GSM8K, MATH)."""
    reference: dict[str, Reference] = {}
    """Published results by the name that `--published` takes."""

    @property
    def dataset(self) -> str:
        return self.problems.partition(":")[0]

    @property
    def split(self) -> str:
        return self.problems.partition(":")[2]


Kind = TypeVar("Kind", bound=Benchmark)


def benchmark_folder() -> Path:
    return shipped("problems") / "benchmarks"


def known_benchmarks() -> list[str]:
    """Names of the shipped benchmarks."""
    return sorted(path.stem for path in benchmark_folder().glob("*.yaml"))


def load_benchmark(name: str) -> tuple[str, Benchmark]:
    """Name and content of a shipped benchmark, or of a PATH.yaml. Raises UserError for what a user can mend."""
    path = benchmark_file(name)
    return path.stem, read_benchmark(path)


def is_path(name: str) -> bool:
    """Whether a benchmark is asked for by the path of its file."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def benchmark_file(name: str) -> Path:
    """The yaml of a shipped benchmark, or PATH.yaml itself. UserError where there is none."""
    if is_path(name):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no benchmark file {name}")
    else:
        path = benchmark_folder() / f"{name}.yaml"
        if not path.is_file():
            known = known_benchmarks()
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else "."
            raise UserError(f"no benchmark '{name}'{meant} Known: {', '.join(known)}, or a path to a yaml file")
    return path


def read_benchmark(path: Path, kind: type[Kind] = Benchmark) -> Kind:  # type: ignore[assignment]
    """The benchmark in a file."""
    try:
        benchmark = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), kind)
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: no yaml: {' '.join(str(problem).split())}") from None
    except msgspec.ValidationError as problem:
        raise UserError(f"{path}: {problem}; problems/benchmarks/README.md says what a benchmark holds") from None
    for key, reference in benchmark.reference.items():
        for decoding, results in reference.results.items():
            for model, result in results.items():
                share_of(result, f"{path}: reference.{key}.results.{decoding}.{model}")
    return benchmark


def share_of(result: Result, place: str) -> float:
    """A published result as a share: 75.9 is 0.759, "16/40" is 0.4."""
    if not isinstance(result, str):
        share = result / 100
    else:
        right, _, number = result.partition("/")
        if not (right.isdecimal() and number.isdecimal() and int(number)):
            raise UserError(f'{place} is {result!r}; write per cent as a number, or right answers as "16/40"')
        share = int(right) / int(number)
    if not 0 <= share <= 1:
        raise UserError(f"{place} is {result}; per cent lie between 0 and 100")
    return share
