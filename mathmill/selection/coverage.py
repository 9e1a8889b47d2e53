"""Coverage: the share of problems with a correct solution, by prompt strategy and by the number of samples.

After k samples a problem with c correct ones among its n is covered with the probability 1 - C(n-c, k) / C(n, k): what k
of its samples, drawn without putting back, would give. Table: as Table 2 of arXiv 2402.10176.
"""

import json
from collections import Counter
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


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the table. `curve`: (samples a problem, expected share of covered problems), ascending."""

    dataset: str
    strategy: str
    num_problems: int
    samples_per_problem: float
    unique_correct: int
    covered: int
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

    def line(self, dataset: str, strategy: str, num_problems: int) -> Line:
        most = max(self.samples.values(), default=0)
        places = sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most} - {0})
        return Line(
            dataset=dataset,
            strategy=strategy,
            num_problems=num_problems,
            samples_per_problem=sum(self.samples.values()) / num_problems if num_problems else 0,
            unique_correct=len(self.texts),
            covered=len(self.correct),
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
    """The table of every dataset: a line a strategy, and their total where there are several."""
    lines = []
    for dataset in dict.fromkeys(dataset for dataset, _, _ in work.strategies):
        total = _Counts()
        problems: set[str] = set()
        own: list[tuple[str, _Counts]] = []
        for strategy, names in [(strategy, names) for of, strategy, names in work.strategies if of == dataset]:
            counts = _Counts()
            for name in names:
                folder = SetFolder(run.solutions / name)
                if folder.config.exists():
                    counts.add_set(folder)
                    problems.update(problem.problem_id for problem in folder.load_problems())
            own.append((strategy, counts))
            total |= counts
        lines += [counts.line(dataset, strategy, len(problems)) for strategy, counts in own]
        if len(own) > 1:
            lines.append(total.line(dataset, "total", len(problems)))
    return lines


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
    from matplotlib.ticker import PercentFormatter

    datasets = list(dict.fromkeys(one.dataset for one in lines))
    figure = Figure(figsize=(5.5 * max(1, len(datasets)), 4), layout="constrained", dpi=150)
    for place, dataset in enumerate(datasets, 1):
        axes = figure.add_subplot(1, len(datasets), place)
        for one in lines:
            if one.dataset == dataset and one.curve:
                style = "o--" if one.strategy == "total" else "o-"
                axes.plot(*zip(*one.curve, strict=True), style, markersize=3, label=one.strategy)
        axes.set_xscale("log", base=2)
        axes.set_title(dataset)
        axes.set_xlabel("samples a problem")
        axes.set_ylabel("problems with a correct solution")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{short_sha(str(lines))}.png")
    figure.savefig(beside)
    beside.replace(path)
