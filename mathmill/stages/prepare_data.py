"""Stage: a benchmark's published form into typed problems."""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from mathmill.options import script
from mathmill.problems.benchmark import load_benchmark
from mathmill.problems.load import data_folder
from mathmill.problems.prepare import DOWNLOAD, Prepared, locate, prepare, write


@dataclass(frozen=True, kw_only=True)
class PrepareDataOptions:
    """Make typed problems of a benchmark's published form. The published addresses are not tried yet."""

    name: Positional[str] = "gsm8k"
    """The benchmark: a name in problems/benchmarks/, or a path to a yaml file."""
    source: str = DOWNLOAD
    """A file, folder or http(s) address: train.jsonl and test.jsonl, for MATH also its tree of N.json files or a tar; else
    the published file of the split."""
    output: Path = field(default_factory=data_folder)
    """Folder for NAME/SPLIT.jsonl. Problems are looked for in $MATHMILL_DATA, or data under the current folder."""
    validation_size: int = 1000
    """Training problems held out as the validation split."""


def run(options: PrepareDataOptions) -> None:
    """Write the splits and print what was written, and the next command."""
    _, benchmark = load_benchmark(options.name)
    folder = options.output / benchmark.dataset
    prepared = prepare(options.name, locate(options.name, options.source, folder / "source"), options.validation_size)
    paths = write(prepared, folder)
    print(f"{'split':<12}{'problems':>8}  file")
    for split, problems in prepared.splits.items():
        print(f"{split:<12}{len(problems):>8,}  {paths[split]}")
    if prepared.num_corrections:
        print(corrections_line(options.name, prepared))
    elsewhere = "" if options.output.resolve() == data_folder().resolve() else f"MATHMILL_DATA={options.output} "
    split = benchmark.split if benchmark.split in paths else "validation"
    print(f"next: {elsewhere}python pipeline/run_generation.py --problems {benchmark.dataset}:{split}")
    if split == benchmark.split:
        print(f"or:   {elsewhere}python pipeline/run_evaluation.py --benchmarks {options.name}")


def corrections_line(name: str, prepared: Prepared) -> str:
    """What became of the answers that are known to be wrong or missing in the published form."""
    known, right = prepared.num_corrections, prepared.num_right
    table = f"(problems/corrections/{name}.yaml)"
    if not prepared.corrected and right == known:
        return f"{known} known gaps: already right in this source {table}"
    already = f", {right} already right" if right else ""
    return f"{len(prepared.corrected)} of {known} known wrong answers found and put right{already} {table}"


def main() -> None:
    script(PrepareDataOptions, run)
