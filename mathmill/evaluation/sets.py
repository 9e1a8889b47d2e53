"""The sample sets of an evaluation in a run, by benchmark and decoding."""

import sys
from pathlib import Path

import msgspec

from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.problems.benchmark import (
    Benchmark,
    benchmark_file,
    is_path,
    known_benchmarks,
    load_benchmark,
    read_benchmark,
)
from mathmill.run import Run

GREEDY, SAMPLED = "greedy", "sampled"
BOUND = ("problems", "prompt")
"""What the sets of a run were made of; the other keys of a benchmark say how their results are read."""


class Kept(Benchmark, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A benchmark in a run, as its file was at the last launch: `RUN/benchmarks/NAME.yaml`."""

    asked: str = ""
    """Its name, or the path of its own file."""


def set_name(benchmark: str, decoding: str) -> str:
    return f"{benchmark}-{decoding}"


def _kept(run: Run) -> Path:
    return run.folder / "benchmarks"


def keep_benchmark(run: Run, name: str, benchmark: Benchmark, asked: str = "") -> None:
    """Write the benchmark into the run as it is now: for its title, policy and published results, wherever the run goes."""
    asked = str(Path(asked).resolve()) if is_path(asked) else asked
    fields = {field: getattr(benchmark, field) for field in Benchmark.__struct_fields__}
    write_whole(_kept(run) / f"{name}.yaml", msgspec.yaml.encode(Kept(**fields, asked=asked)))


def kept_benchmark(run: Run, name: str) -> Kept | None:
    """What the run has of the benchmark of that name."""
    path = _kept(run) / f"{name}.yaml"
    return read_benchmark(path, Kept) if path.exists() else None


def changed_keys(kept: Benchmark, now: Benchmark) -> list[str]:
    """Keys in which a benchmark is not what a run kept of it."""
    return [key for key in Benchmark.__struct_fields__ if getattr(kept, key) != getattr(now, key)]


def as_it_is_now(run: Run, kept: Kept) -> Benchmark:
    """The benchmark with what its own file says by now of how results are read, and a line about it; the copy elsewhere."""
    try:
        file = benchmark_file(kept.asked)
    except UserError:  # the run was carried to where its file is not
        return kept
    now: Benchmark = read_benchmark(file)
    keys = [key for key in changed_keys(kept, now) if key not in BOUND]
    if keys:
        print(
            f"note: {file} has another {', '.join(keys)} than {run.folder} was started with: taken as it is now",
            file=sys.stderr,
        )
    return msgspec.structs.replace(kept, **{key: getattr(now, key) for key in keys})


def benchmark_of(run: Run, name_of_set: str, dataset: str, split: str, model: str = "") -> tuple[str, Benchmark] | None:
    """Name and benchmark of a set: kept in the run under the set's name (without that of the model, where a run has several),
    else by its problems, kept or shipped; or None."""
    for name in (name_of_set, name_of_set.removeprefix(f"{model}-")):
        for decoding in (GREEDY, SAMPLED):
            path = _kept(run) / f"{name.removesuffix(f'-{decoding}')}.yaml"
            if name.endswith(f"-{decoding}") and path.exists():
                return path.stem, read_benchmark(path, Kept)
    problems = f"{dataset}:{split}"
    found: list[tuple[str, Benchmark]]
    found = [(path.stem, read_benchmark(path, Kept)) for path in sorted(_kept(run).glob("*.yaml"))]
    found += [load_benchmark(name) for name in known_benchmarks()]
    return next(((name, benchmark) for name, benchmark in found if benchmark.problems == problems), None)
