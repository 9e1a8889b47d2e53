"""What a run's solutions amount to: counted from its published shards."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from mathmill.generation.progress import SetProgress, set_progress
from mathmill.generation.sets import SetFolder, set_folders
from mathmill.generation.shards import published
from mathmill.records import MASKING, Solution, read_records
from mathmill.run import Run


@dataclass
class Summary:
    """Counts over the published rows of a set."""

    progress: SetProgress
    num_problems: int
    is_graded: bool
    """Candidates for masked solutions are not."""
    num_rows: int = 0
    num_correct: int = 0
    num_unknown: int = 0
    num_with_code: int = 0
    num_duplicates: int = 0
    num_tokens: int = 0
    covered: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)
    """Wrong or ungraded rows by what went wrong: the code's last status, or how the text ended."""


def solutions(folder: SetFolder) -> Iterator[Solution]:
    """Every published row of a set, shard by shard."""
    for name in sorted(published(folder)):
        yield from read_records(folder.folder / f"{name}.jsonl", Solution)


def failure_of(row: Solution) -> str:
    """Why a row that is not correct has no chance to be, or that its answer is wrong."""
    if row.predicted_answer is None:
        if row.finish_reason == "stop":
            return "no answer"
        return {"length": "too long", "context": "context full", "code_error": f"code: {row.error_message}"}.get(
            row.finish_reason, "too many blocks"
        )
    return "could not tell" if row.is_correct is None else "wrong answer"


def summarize(folder: SetFolder) -> Summary:
    sample_set = folder.load()
    is_graded = sample_set.prompt.generation_type != MASKING
    summary = Summary(set_progress(folder), sample_set.num_problems, is_graded)
    texts: set[int] = set()
    for row in solutions(folder):
        summary.num_rows += 1
        summary.num_correct += row.is_correct is True
        summary.num_unknown += row.is_correct is None
        summary.num_with_code += bool(row.code_blocks)
        summary.num_tokens += row.num_tokens
        text = hash((row.problem_id, row.generation))
        summary.num_duplicates += text in texts
        texts.add(text)
        if row.is_correct:
            summary.covered.add(row.problem_id)
        else:
            summary.failures[failure_of(row)] += 1
    return summary


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


ROWS = (
    ("problems", lambda one: f"{one.num_problems:,}"),
    ("samples", lambda one: f"{one.num_rows:,}"),
    (
        "correct, of graded samples",
        lambda one: share(one.num_correct, one.is_graded * (one.num_rows - one.num_unknown)),
    ),
    ("coverage: problems with a correct sample", lambda one: share(len(one.covered), one.is_graded * one.num_problems)),
    ("with code", lambda one: share(one.num_with_code, one.num_rows)),
    ("duplicates of a problem", lambda one: share(one.num_duplicates, one.num_rows)),
    ("not graded: could not tell", lambda one: f"{one.num_unknown:,}"),
    ("quarantined: could not be made", lambda one: f"{one.progress.num_quarantined:,}"),
    ("tokens a sample", lambda one: f"{one.num_tokens / one.num_rows:,.1f}" if one.num_rows else "-"),
)


def print_summary(run: Run) -> None:
    """A table with a column a set, what was not correct, and where to look, to stderr."""
    sets = [(folder, summarize(folder)) for folder in set_folders(run)]
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(run.name)
    for _, one in sets:
        table.add_column(one.progress.name, justify="right")
    for name, value in ROWS:
        table.add_row(name, *(value(one) for _, one in sets))
    console.print()
    console.print(table)
    console.print()
    for folder, one in sets:
        if not one.is_graded:
            console.print(f"{one.progress.name}: candidates for masked solutions, which have no answer to be graded")
        else:
            failures = ", ".join(f"{kind} {count:,}" for kind, count in one.failures.most_common())
            console.print(f"not correct in {one.progress.name}: {failures or 'none'}")
        console.print(f"solutions: {folder.folder}/p*.s*.jsonl")
        if one.progress.num_quarantined:
            console.print(f"quarantined, with the reasons: {folder.quarantine}", style="red")
        missing = one.progress.num_rows - one.progress.num_done
        if missing:
            console.print(
                f"{missing:,} samples are still to come: other tasks hold them, or give the same command again"
            )
