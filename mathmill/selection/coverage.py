"""Coverage: the share of problems with a correct solution, by prompt strategy and by the number of samples.

After k samples a problem with c correct ones among its n is covered with the probability 1 - C(n-c, k) / C(n, k): what k
of its samples, drawn without putting back, would give. Table: as Table 2 of arXiv 2402.10176.
"""

import json
import operator
from collections import Counter
from collections.abc import Iterable
from functools import reduce
from pathlib import Path

import msgspec

from mathmill.files import write_whole
from mathmill.generation.sets import SetFolder
from mathmill.records import short_sha
from mathmill.run import Run


class CoverageWork(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A report: (dataset, strategy, its sets) in the order of the table, the strategies of a dataset together."""

    name: str
    strategies: list[tuple[str, str, list[str]]]
    unions: dict[str, list[str]] = {}
    """Further lines: what these strategies cover together."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table. `curve`: (samples a problem, expected share of covered problems), ascending."""

    dataset: str
    strategy: str
    num_problems: int
    samples_per_problem: float
    unique_correct: int
    covered: int
    is_joined: bool
    """Whether it is of several strategies together."""
    curve: list[tuple[int, float]]

    @property
    def coverage(self) -> float:
        return self.covered / self.num_problems if self.num_problems else 0.0


class _Counts:
    """Samples and correct samples by problem, and the different correct texts."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.correct: Counter[str] = Counter()
        self.texts: set[int] = set()

    def add_set(self, folder: SetFolder) -> None:
        from mathmill.generation.summary import solutions

        for row in solutions(folder):
            self.samples[row.problem_id] += 1
            if row.is_correct:
                self.correct[row.problem_id] += 1
                self.texts.add(hash((row.problem_id, row.generation)))

    def __or__(self, other: "_Counts") -> "_Counts":
        joined = _Counts()
        joined.samples, joined.correct = self.samples + other.samples, self.correct + other.correct
        joined.texts = self.texts | other.texts
        return joined

    def line(self, dataset: str, strategy: str, num_problems: int, is_joined: bool = False) -> Line:
        most = max(self.samples.values(), default=0)
        places = sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most} - {0})
        return Line(
            dataset=dataset,
            strategy=strategy,
            num_problems=num_problems,
            samples_per_problem=sum(self.samples.values()) / num_problems if num_problems else 0,
            unique_correct=len(self.texts),
            covered=len(self.correct),
            is_joined=is_joined,
            curve=[(k, self._expected(k) / num_problems) for k in places if num_problems],
        )

    def _expected(self, k: int) -> float:
        return sum(1 - missed(self.samples[problem], count, k) for problem, count in self.correct.items())


def missed(samples: int, correct: int, k: int) -> float:
    """The probability that k of the samples, drawn without putting back, are all wrong; all of them where k is more."""
    k = min(k, samples)
    if samples - correct < k:
        return 0.0
    probability = 1.0
    for place in range(k):
        probability *= (samples - correct - place) / (samples - place)
    return probability


def coverage_lines(work: CoverageWork, run: Run) -> list[Line]:
    """The table of every dataset: a line a strategy, one a union after the last of its strategies, and at last the total."""
    lines = []
    for dataset in dict.fromkeys(dataset for dataset, _, _ in work.strategies):
        own: dict[str, _Counts] = {}
        problems: set[str] = set()
        for strategy, names in [(strategy, names) for of, strategy, names in work.strategies if of == dataset]:
            own[strategy] = _Counts()
            for name in names:
                folder = SetFolder(run.solutions / name)
                if folder.config.exists():
                    own[strategy].add_set(folder)
                    problems.update(problem.problem_id for problem in folder.load_problems())
        told: list[str] = []
        for strategy, counts in own.items():
            told.append(strategy)
            lines.append(counts.line(dataset, strategy, len(problems)))
            for union, members in work.unions.items():
                if strategy in members and set(members) <= set(told):
                    joined = _joined(own[member] for member in members)
                    lines.append(joined.line(dataset, union, len(problems), is_joined=True))
        if len(own) > 1:
            lines.append(_joined(own.values()).line(dataset, "total", len(problems), is_joined=True))
    return lines


def _joined(counts: Iterable[_Counts]) -> _Counts:
    return reduce(operator.or_, counts, _Counts())


def report_coverage(work: CoverageWork, run: Run) -> list[Line]:
    """Write RUN/reports/NAME.json, .md and .png, unless the same is there already; give the lines."""
    lines = coverage_lines(work, run)
    folder = run.folder / "reports"
    content = json.dumps(msgspec.to_builtins(lines), indent=1) + "\n"
    if (folder / f"{work.name}.json").exists() and (folder / f"{work.name}.json").read_text() == content:
        return lines
    write_whole(folder / f"{work.name}.md", table_of(lines))
    draw(lines, folder / f"{work.name}.png")
    write_whole(folder / f"{work.name}.json", content)

    return lines


def table_of(lines: list[Line]) -> str:
    """The table in Markdown."""
    head = "| dataset | prompt | samples a problem | unique correct solutions | covered problems | coverage |\n"
    rows = (
        f"| {one.dataset} | {one.strategy} | {one.samples_per_problem:,.4g} | {one.unique_correct:,} | "
        f"{one.covered:,} of {one.num_problems:,} | {one.coverage:.1%} |\n"
        for one in lines
    )
    return head + "|---|---|---:|---:|---:|---:|\n" + "".join(rows)


def draw(lines: list[Line], path: Path) -> None:
    """A panel a dataset: coverage against samples a problem, on a logarithmic axis, a curve a strategy."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    datasets = list(dict.fromkeys(one.dataset for one in lines))
    figure = Figure(figsize=(5.5 * max(1, len(datasets)), 4), layout="constrained", dpi=150)
    for place, dataset in enumerate(datasets, 1):
        axes = figure.add_subplot(1, len(datasets), place)
        shown = [one for one in lines if one.dataset == dataset and one.curve]
        for one in shown:
            style = "o--" if one.is_joined else "o-"
            axes.plot(*zip(*one.curve, strict=True), style, markersize=4, clip_on=False, label=one.strategy)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, 1)
        axes.set_title(f"{dataset}: {shown[0].num_problems:,} problems" if shown else dataset)
        axes.set_xlabel("samples a problem")
        axes.set_ylabel("problems with a correct solution")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        if shown:
            axes.legend(fontsize="small", loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{short_sha(str(lines))}.png")
    figure.savefig(beside)
    beside.replace(path)
