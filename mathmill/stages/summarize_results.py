"""Results of evaluated runs: tables here, and a report to look at, to copy and to cite."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from mathmill.errors import UserError
from mathmill.options import script
from mathmill.run import Run, find_run

if TYPE_CHECKING:
    from mathmill.evaluation.results import Evaluated
    from mathmill.evaluation.tables import Table

JUDGE = "judge"


@dataclass(frozen=True, kw_only=True)
class SummarizeOptions:
    """Print the results of evaluated runs, and write a report: HTML to look at, Markdown, LaTeX and CSV."""

    runs: Positional[tuple[str, ...]] = ()
    """Names of runs in runs/, or their folders; several are compared (default: the newest)."""
    published: str | None = None
    """Put published results beside ours: openmathinstruct-1, openmathinstruct-2, or another name under reference: in the
    benchmarks' yaml."""
    judge: str | None = None
    """Name of the verdicts of pipeline/judge.py to show beside the symbolic ones (default: judge, where there are some)."""
    output: Path | None = None
    """Folder of the report (default: report in the first run's folder)."""
    report: bool = True
    """Write the report, too."""
    solutions_per_problem: int = 4
    """Solutions of a problem that the report shows, at most."""
    page_mb: float = 2.0
    """A page of problems goes on on another one beyond this size."""


def main() -> None:
    script(SummarizeOptions, summarize_results)


def summarize_results(options: SummarizeOptions) -> int:
    """Print the tables, write the report, and say where it is."""
    if options.solutions_per_problem < 1:
        raise UserError(f"--solutions_per_problem must be at least 1, not {options.solutions_per_problem}")
    if not 0.05 <= options.page_mb <= 1000:
        raise UserError(f"--page_mb must lie between 0.05 and 1000, not {options.page_mb}")
    for name in ("published", "judge"):
        if getattr(options, name) == "":
            raise UserError(f"--{name} is empty; give a name, or leave it out")
    runs = [find_run(name) for name in options.runs] or [find_run(None)]
    if len({run.folder for run in runs}) < len(runs):
        raise UserError("a run is named twice")
    with _progress() as advance:
        results = results_of(runs, options.judge, advance)
        from mathmill.evaluation.report import tables_of, write_report

        advance("intervals")
        tables = tables_of(results, options.published)
        folder = options.output or runs[0].folder / "report"
        if options.report:
            try:
                write_report(
                    results,
                    tables,
                    folder,
                    most_solutions=options.solutions_per_problem,
                    page_bytes=int(options.page_mb * (1 << 20)),
                    advance=advance,
                )
            except OSError as problem:
                raise UserError(f"{folder}: cannot be written: {problem.strerror}; choose another --output") from None
    _print([tables.main, tables.published, tables.pairs, tables.counts])
    if options.report:
        print(f"report   {folder / 'index.html'}")
        print(f"tables   {folder}/results.md results.tex results.csv curves.csv")
    return 0


def print_results(runs: Sequence[Run]) -> None:
    """The main table alone."""
    from mathmill.evaluation.tables import counts_table, main_table

    with _progress() as advance:
        results = results_of(runs, None, advance)
    _print([main_table(results), counts_table(results)])


def results_of(runs: Sequence[Run], judge: str | None, advance: Callable[[str], None]) -> "list[Evaluated]":
    """The results of the runs, with the judge's verdicts where they are asked for or there."""
    from mathmill.evaluation.results import evaluate_runs

    if judge is None and any(_is_judged(run) for run in runs):
        judge = JUDGE
    return evaluate_runs(runs, judge=judge, advance=advance)


def _is_judged(run: Run) -> bool:
    return any(run.solutions.glob(f"*/verdicts/{JUDGE}/judge.yaml"))


def _print(tables: "Sequence[Table | None]") -> None:
    from mathmill.evaluation.writing import print_table

    for table in tables:
        if table is not None:
            print_table(table)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is done just now, as a live line on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        yield lambda what: status.update(what)
