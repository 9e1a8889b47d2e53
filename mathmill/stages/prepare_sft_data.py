"""Stage: solutions into a training set, here."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from mathmill.options import script
from mathmill.selection.options import Choice, Filters, Output


@dataclass(frozen=True, kw_only=True)
class PrepareSftDataOptions:
    """Select solutions for training: filters with reasons, code preference, down-sampling. The same command again does
    nothing; the same rows and options give the same bytes, whatever their order and the number of processes."""

    input: tuple[str, ...] = ()
    """Runs (name or folder), RUN/solutions/SET, or files: NeMo-Skills' output-rs*.jsonl, the published datasets, JSON lines
    or Parquet (unset: the newest run)."""
    output: Path = Path("sft-data")
    """The folder that is made."""
    filters: OmitArgPrefixes[Filters] = field(default_factory=Filters)
    choice: OmitArgPrefixes[Choice] = field(default_factory=Choice)
    written: OmitArgPrefixes[Output] = field(default_factory=Output)
    verdicts: str | None = None
    """Verdicts that were given later by grade.py, in the place of those of the rows."""
    allow_partial: bool = False
    """Take what a run has so far, though it is not finished."""
    match_coverage: Path | None = None
    """Another training set: take no more solutions of a problem than it has. Doing so both ways matches two sets."""
    licence: str = "other"
    """What the dataset card says."""
    num_processes: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """How many share the work."""


def main() -> None:
    script(PrepareSftDataOptions, run)


def run(options: PrepareSftDataOptions) -> None:
    """Make the set; print the counts and the next command."""
    from mathmill.run import find_run
    from mathmill.selection.training_set import Selection, make_training_set

    selection = Selection(
        inputs=options.input or (str(find_run(None).folder),),
        output=options.output,
        filters=options.filters,
        choice=options.choice,
        written=options.written,
        verdicts=options.verdicts,
        allow_partial=options.allow_partial,
        match_coverage=options.match_coverage,
        licence=options.licence,
        processes=options.num_processes,
    )
    report = make_training_set(selection, say)
    if report is None:
        print(f"{options.output} is there already, made of the same in the same way; nothing to do", file=sys.stderr)
        return
    for line in report.lines():
        print(line)
    print(
        f"written to {options.output}/: {', '.join(sorted(path.name for path in options.output.iterdir()))}",
        file=sys.stderr,
    )


def say(text: str) -> None:
    """A live line on a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="" if "%" in text else "\r", file=sys.stderr, flush=True)
