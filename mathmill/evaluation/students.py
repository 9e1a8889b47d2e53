"""Students beside what they were before, and beside those of a control: one table, and what its numbers do and do not say.

The report step of a recipe's job: python -m mathmill.evaluation.students RUN/jobs/report.json
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mathmill.files import write_whole
from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told
from mathmill.run import Run

if TYPE_CHECKING:
    from mathmill.evaluation.results import Evaluated
    from mathmill.evaluation.tables import Table


class StudentsWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section `report` of a job's JSON file: models of the run by the training set that they learned from."""

    base: str
    students: dict[str, list[str]]
    """Training set to its models, one a seed."""
    control: str | None = None
    """The training set that the others are compared with."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A group of models on a benchmark. Shares and differences of shares, each with the ends of its 95 % interval."""

    benchmark: str
    metric: str
    group: str
    num_problems: int
    shares: list[float]
    """Of every seed."""
    share: tuple[float, float, float]
    less_base: tuple[float, float, float] | None = None
    less_control: tuple[float, float, float] | None = None


def report_students(work: StudentsWork, run: Run) -> None:
    """Write RUN/report: the report of an evaluation with a table of students, and last `students.json`. UserError where an
    evaluation is not whole."""
    from mathmill.evaluation.report import tables_of, write_report
    from mathmill.evaluation.results import evaluate_runs
    from mathmill.evaluation.writing import print_table

    models = [work.base, *(label for labels in work.students.values() for label in labels)]
    results = evaluate_runs([run], models=models)
    lines = lines_of_students(work, results)
    table = students_table(work, lines)
    tables = tables_of(results, None, students=table)
    folder = run.folder / "report"
    page = write_report(results, tables, folder, most_solutions=4, page_bytes=2 << 20)
    print_table(table)
    write_whole(folder / "students.json", msgspec.json.format(msgspec.json.encode(lines)))
    print(f"\nreport   {page}", flush=True)


def lines_of_students(work: StudentsWork, results: "Sequence[Evaluated]") -> list[Line]:
    """A line a benchmark, metric and group: the base, then the students of every training set."""
    import numpy as np

    from mathmill.evaluation.intervals import difference_of_groups

    lines = []
    groups = {work.base: [work.base], **work.students}
    for name in dict.fromkeys(result.name for result in results):
        by_model = {result.any_set.sample_set.model: result for result in results if result.name == name}
        first = by_model[work.base]
        for metric in [score.metric for score in first.scores() if score.metric.partition("@")[0] in ("greedy", "avg")]:
            values = {}
            for group, labels in groups.items():
                scores = [by_model[label].score(metric) for label in labels]
                values[group] = np.stack([score.values for score in scores if score is not None])
            for group, mine in values.items():
                control = work.control if work.control != group and group != work.base else None
                lines.append(
                    Line(
                        benchmark=first.title,
                        metric=metric,
                        group=group,
                        num_problems=mine.shape[1],
                        shares=[float(share) for share in mine.mean(axis=1)],
                        share=difference_of_groups(mine, np.zeros((1, mine.shape[1]))),
                        less_base=None if group == work.base else difference_of_groups(mine, values[work.base]),
                        less_control=None if control is None else difference_of_groups(mine, values[control]),
                    )
                )
    return lines


def students_table(work: StudentsWork, lines: Sequence[Line]) -> "Table":
    """The lines as a table; its note says in words what they carry."""
    from mathmill.evaluation.tables import Table, percent

    heads = ["benchmark", "metric", "trained on", "accuracy", "each seed", "less before"]
    if work.control is not None:
        heads.append(f"less {work.control}")
    rows = []
    for line in lines:
        name = "nothing (before)" if line.group == work.base else line.group
        seeds = " ".join(percent(share) for share in line.shares) if line.less_base is not None else "–"
        row = [
            line.benchmark,
            line.metric,
            name,
            _with_ends(line.share),
            seeds,
            _with_ends(line.less_base, signed=True),
        ]
        rows.append(row + [_with_ends(line.less_control, signed=True)] * (work.control is not None))
    how = (
        "Per cent of the same problems, the mean over seeds. 95 % intervals: 10,000 draws of problems, and of seeds within each "
        "group; a few seeds tell little of how much other seeds would differ."
    )
    return Table("Students, before and after", heads, rows, "\n".join([*claims(work, lines), how]))


def claims(work: StudentsWork, lines: Sequence[Line]) -> list[str]:
    """What the differences say, a sentence each; one whose interval holds 0 says that they do not tell."""
    said = []
    for line in lines:
        on = f"{line.benchmark} ({line.metric})"
        if line.less_base is not None:
            said.append(
                f"{on}: training on {line.group} {_verdict(line.less_base, 'raised', 'lowered', 'the accuracy')}."
            )
        if line.less_control is not None:
            than = f"{line.group} than on {work.control}"
            said.append(f"{on}: a student is {_verdict(line.less_control, 'better', 'worse', f'on {than}')}.")
    return said


def _verdict(difference: tuple[float, float, float], up: str, down: str, what: str) -> str:
    middle, low, high = (100 * each for each in difference)
    ends = f"{middle:+.1f} points [{low:+.1f}, {high:+.1f}]"
    if low > 0 or high < 0:
        return f"{up if low > 0 else down} {what}: {ends}"
    return f"neither {up} nor {down} {what}, as far as these numbers tell: {ends}"


def _with_ends(value: tuple[float, float, float] | None, signed: bool = False) -> str:
    from mathmill.evaluation.intervals import Interval
    from mathmill.evaluation.tables import ends, percent

    if value is None:
        return "–"
    middle, low, high = value
    return f"{f'{100 * middle:+.1f}' if signed else percent(middle)}\n{ends(Interval(low, high), signed=signed)}"


def main() -> None:
    die_with_parent_if_told()
    work = msgspec.convert(section(sys.argv[1], "report"), StudentsWork)
    report_students(work, Run(Path(os.environ["MATHMILL_RUN"])))


if __name__ == "__main__":
    ended_by(main)
