"""The sample sets of an evaluation in a run, by benchmark and decoding."""

from pathlib import Path

import msgspec

from mathmill.files import publish_once
from mathmill.problems.benchmark import Benchmark, known_benchmarks, load_benchmark, read_benchmark
from mathmill.run import Run

GREEDY, SAMPLED = "greedy", "sampled"


def set_name(benchmark: str, decoding: str) -> str:
    return f"{benchmark}-{decoding}"


def _kept(run: Run) -> Path:
    return run.folder / "benchmarks"


def keep_benchmark(run: Run, name: str, benchmark: Benchmark) -> None:
    """Write the benchmark into the run as it is now, once, for its title and its published results."""
    publish_once(_kept(run) / f"{name}.yaml", msgspec.yaml.encode(benchmark))


def benchmark_of(run: Run, name_of_set: str, dataset: str, split: str) -> tuple[str, Benchmark] | None:
    """Name and benchmark of a set: kept in the run under the set's name, else by its problems, kept or shipped; or None."""
    for decoding in (GREEDY, SAMPLED):
        path = _kept(run) / f"{name_of_set.removesuffix(f'-{decoding}')}.yaml"
        if name_of_set.endswith(f"-{decoding}") and path.exists():
            return path.stem, read_benchmark(path)
    problems = f"{dataset}:{split}"
    found = [(path.stem, read_benchmark(path)) for path in sorted(_kept(run).glob("*.yaml"))]
    found += [load_benchmark(name) for name in known_benchmarks()]
    return next(((name, benchmark) for name, benchmark in found if benchmark.problems == problems), None)
