"""Stage: a benchmark's published form into typed problems."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mathmill.options import script
from mathmill.problems.load import data_folder
from mathmill.problems.prepare import DOWNLOAD, locate, prepare, write


@dataclass(frozen=True, kw_only=True)
class PrepareDataOptions:
    """Make typed problems of a benchmark's published form. The published addresses are not tried yet."""

    name: Positional[Literal["gsm8k", "math"]] = "gsm8k"
    """The benchmark."""
    source: str = DOWNLOAD
    """A file, a folder or an http(s) address that holds the published form (the addresses that `download` uses were out
    of reach when this was written). GSM8K is train.jsonl and test.jsonl, MATH a tree of N.json files or a tar of it."""
    output: Path = field(default_factory=data_folder)
    """Folder for NAME/SPLIT.jsonl. Problems are looked for in $MATHMILL_DATA, or data under the current folder."""
    validation_size: int = 1000
    """Training problems held out as the validation split."""


def run(options: PrepareDataOptions) -> None:
    """Write the splits and print what was written, and the next command."""
    folder = options.output / options.name
    prepared = prepare(options.name, locate(options.name, options.source, folder / "source"), options.validation_size)
    paths = write(prepared, folder)
    print(f"{'split':<12}{'problems':>8}  file")
    for split, problems in prepared.splits.items():
        print(f"{split:<12}{len(problems):>8,}  {paths[split]}")
    if prepared.num_corrections:
        table = f"problems/corrections/{options.name}.yaml"
        print(
            f"{len(prepared.corrected)} of {prepared.num_corrections} known wrong answers found and put right ({table})"
        )
    elsewhere = "" if options.output.resolve() == data_folder().resolve() else f"MATHMILL_DATA={options.output} "
    split = "test" if "test" in paths else "validation"
    print(f"next: {elsewhere}python pipeline/run_generation.py --problems {options.name}:{split}")


def main() -> None:
    script(PrepareDataOptions, run)
