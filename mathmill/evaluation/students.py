"""Students beside what they were before, and beside those of a control: one table, and what its numbers do and do not say.

The report step of a recipe's job: python -m mathmill.evaluation.students RUN/jobs/report.json
"""

import os
import sys
from collections.abc import Mapping, Sequence
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
    sets: dict[str, int]
    """The sample sets of all these models, and the samples asked for of each problem."""
    rows: dict[str, int | None] = {}
    """Training set to the rows that were asked for; None: all there are."""


class Taught(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a training set."""

    rows: int
    correct: int
    asked: int | None = None
    """Rows that were asked for, where that was said."""

    def text(self) -> str:
        fewer = f" of {self.asked:,} asked" if self.asked is not None and self.rows < self.asked else ""
        share = f"{100 * self.correct / self.rows:.1f}% correct" if self.rows else "none correct"
        return f"{self.rows:,}{fewer}\n{share}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`RUN/reports/students/students.json`: what was asked for, and what came out."""

    work: StudentsWork
    training_sets: dict[str, Taught]
    lines: "list[Line]"


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


def report_folder(run: Run) -> Path:
    return run.folder / "reports" / "students"


def reported(run: Run) -> StudentsWork | None:
    """What the report of the run is of; None where there is none."""
    path = report_folder(run) / "students.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report).work
    except (OSError, msgspec.MsgspecError):
        return None


def report_students(work: StudentsWork, run: Run) -> None:
    """Write RUN/reports/students: the report of an evaluation with a table of students, and last `students.json`.

    UserError where an evaluation is not whole.
    """
    from mathmill.evaluation.report import tables_of, write_report
    from mathmill.evaluation.results import evaluate_runs
    from mathmill.evaluation.writing import print_table

    results = evaluate_runs([run], sets=list(work.sets))
    lines = lines_of_students(work, results)
    taught = {name: taught_of(run, name, asked) for name, asked in work.rows.items()}
    table = students_table(work, lines, taught)
    tables = tables_of(results, None, students=table)
    folder = report_folder(run)
    page = write_report(results, tables, folder, most_solutions=4, page_bytes=2 << 20)
    print_table(table)
    report = Report(work=work, training_sets=taught, lines=lines)
    write_whole(folder / "students.json", msgspec.json.format(msgspec.json.encode(report)))
    print(f"\nreport   {page}", flush=True)


def taught_of(run: Run, name: str, asked: int | None) -> Taught:
    """Count the rows of a training set of the run."""
    from mathmill.records import read_records
    from mathmill.selection.work import training_set_folder

    rows = correct = 0
    for row in read_records(training_set_folder(run, name) / "train.jsonl", _Row):
        rows += 1
        correct += row.is_correct is True
    return Taught(rows=rows, correct=correct, asked=asked)


class _Row(msgspec.Struct):
    is_correct: bool | None = None


def lines_of_students(work: StudentsWork, results: "Sequence[Evaluated]") -> list[Line]:
    """A line a benchmark, metric and group: the base, then the students of every training set."""
    lines = []
    for name in dict.fromkeys(result.name for result in results):
        by_model = {result.any_set.sample_set.model: result for result in results if result.name == name}
        count = min(result.num_samples for result in by_model.values())
        metrics = ["greedy"] * all(result.greedy is not None for result in by_model.values())
        for metric in metrics + [f"avg@{count}"] * bool(count):
            lines += _lines_of(work, by_model, metric)
    return lines


def _lines_of(work: StudentsWork, by_model: "dict[str, Evaluated]", metric: str) -> list[Line]:
    """A line a group of models, of one benchmark and metric."""
    import numpy as np

    from mathmill.evaluation.intervals import difference_of_groups, mean_of_group

    def values_of(labels: list[str]):
        scores = [by_model[label].score(metric) for label in labels]
        return np.stack([score.values for score in scores if score is not None])

    values = {work.base: values_of([work.base])} | {name: values_of(labels) for name, labels in work.students.items()}
    lines = []
    for group, mine in values.items():
        control = values[work.control] if work.control and group not in (work.control, work.base) else None
        lines.append(
            Line(
                benchmark=by_model[work.base].title,
                metric=metric,
                group=group,
                num_problems=mine.shape[1],
                shares=[float(share) for share in mine.mean(axis=1)],
                share=mean_of_group(mine),
                less_base=None if group == work.base else difference_of_groups(mine, values[work.base]),
                less_control=None if control is None else difference_of_groups(mine, control),
            )
        )
    return lines


def students_table(work: StudentsWork, lines: Sequence[Line], taught: Mapping[str, Taught]) -> "Table":
    """The lines as a table; its note says in words what they carry."""
    from mathmill.evaluation.tables import Table, percent

    heads = ["benchmark", "metric", "trained on", "rows", "accuracy", "each seed", "minus before"]
    if work.control is not None:
        heads.append(f"minus {work.control}")
    rows = []
    for line in lines:
        name = "nothing (before)" if line.group == work.base else line.group
        seeds = " ".join(percent(share) for share in line.shares) if line.less_base is not None else "–"
        row = [
            line.benchmark,
            line.metric,
            name,
            taught[line.group].text() if line.group in taught else "–",
            _with_ends(line.share),
            seeds,
            _with_ends(line.less_base, signed=True),
        ]
        rows.append(row + [_with_ends(line.less_control, signed=True)] * (work.control is not None))
    how = (
        "Per cent of the same problems, the mean over seeds. 95 % intervals: 10,000 draws of problems, and of seeds within each "
        "group; a few seeds tell little of how much other seeds would differ, one tells nothing. "
        "Teacher and selection were drawn once."
    )
    return Table("Students, before and after", heads, rows, "\n".join([*claims(work, lines), *fewer(taught), how]))


def fewer(taught: Mapping[str, Taught]) -> list[str]:
    """A sentence for each training set that has not as many rows as were asked for."""
    return [
        f"Training set {name} has {one.rows:,} rows; {one.asked:,} were asked for, and there were no more."
        for name, one in taught.items()
        if one.asked is not None and one.rows < one.asked
    ]


def claims(work: StudentsWork, lines: Sequence[Line]) -> list[str]:
    """What the differences say, a sentence each; one whose interval holds 0 says that they do not tell."""
    said = []
    for line in lines:
        where = f"{line.benchmark}, {line.metric}: "
        students = f"{'students' if len(line.shares) > 1 else 'this one student'} trained on {line.group}"
        if line.less_base is not None:
            said.append(f"{where}{students} {_verdict(line.less_base, 'before')}.")
        if line.less_control is not None:
            said.append(f"{where}{students} {_verdict(line.less_control, f'trained on {work.control}')}.")
    return said


def _verdict(difference: tuple[float, float, float], than: str) -> str:
    middle, low, high = (100 * each for each in difference)
    ends = f"{middle:+.1f} points [{low:+.1f}, {high:+.1f}]"
    if low > 0 or high < 0:
        return f"solve {'more' if low > 0 else 'less'} than {than}: {ends}"
    return f"and those {than} are not told apart by these numbers: {ends}"


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
