"""Results as tables of text, the same for terminal, Markdown, LaTeX and HTML; and as tidy rows of numbers for CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mathmill.errors import UserError
from mathmill.evaluation.intervals import Interval, difference_of_shares, wilson
from mathmill.evaluation.results import Comparison, Evaluated, Score, counts_of, groups_of
from mathmill.problems.benchmark import Reference, known_benchmarks, load_benchmark, share_of


@dataclass(frozen=True)
class Table:
    """A caption, column heads, rows of text (a line break parts a value from its interval), and a note."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""
    strong: frozenset[int] = frozenset()
    """Rows that are ours among published ones."""

    def is_words(self, column: int) -> bool:
        """Whether a column stands left of the first that holds numbers."""
        return column < self.num_words

    @property
    def num_words(self) -> int:
        """Columns from the left that hold words, not numbers."""
        for number in range(len(self.heads)):
            if number and any(row[number][:1].isdigit() or row[number][:1] in "+-–" for row in self.rows):
                return number
        return len(self.heads)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def ends(interval: Interval, signed: bool = False) -> str:
    form = "{:+.1f}" if signed else "{:.1f}"
    return f"[{form.format(100 * interval.low)}, {form.format(100 * interval.high)}]"


def with_ends(score: Score | None) -> str:
    return "–" if score is None else f"{percent(score.share)}\n{ends(score.interval)}"


def main_table(results: Sequence[Evaluated]) -> Table:
    """A row a benchmark and model: greedy, avg@k, majority@k, pass@k with their intervals, by every verdict."""
    rows = []
    judged, sampled = any(result.judged for result in results), any(result.num_samples for result in results)
    for result in results:
        count = result.num_samples
        for verdict in result.verdict_names:
            size = f"{len(result.problems):,}" + ("" if result.is_whole else "*")
            row = [result.title, result.label, *([verdict] if judged else []), size]
            row += [f"{count or '–'}"] * sampled
            metrics = ["greedy", *(at(count) if sampled else [])]
            rows.append(row + [with_ends(result.score(metric, verdict)) for metric in metrics])
    heads = ["benchmark", "model", *(["verdict"] if judged else []), "problems", *(["k"] if sampled else []), "greedy"]
    heads += ["avg@k", "majority@k", "pass@k"] * sampled
    note = (
        "Per cent of all problems, with 95% intervals: Wilson's for greedy and majority, 10,000 bootstrap draws of problems "
        "for avg and pass. Majority: classes of equal answers; a tie goes to the answer seen first; a class is judged by "
        "its first answer."
    )
    if any(not result.is_whole for result in results):
        note += " * not the published number of problems."
    return Table("Results", heads, rows, note)


def at(count: int) -> list[str]:
    """The metrics of this many samples."""
    return [f"avg@{count}", f"majority@{count}", f"pass@{count}"]


def counts_table(results: Sequence[Evaluated]) -> Table:
    """A row a sample set: what happened to its solutions apart from right and wrong."""
    rows = []
    for result in results:
        for samples in (result.greedy, result.sampled):
            if samples is None:
                continue
            counts = counts_of(samples)
            total = max(1, counts.num_solutions)
            kinds = (counts.no_answer, counts.could_not_tell, counts.with_failed_block, counts.cut)
            rows.append(
                [result.title, result.label, counts.decoding, f"{counts.num_solutions:,}"]
                + [f"{number:,}\n{percent(number / total)}%" if number else "0" for number in kinds]
                + [f"{counts.quarantined:,}", f"{counts.blocks_each:.2f}", f"{counts.tokens_each:,.0f}"]
            )
    heads = [
        "benchmark",
        "model",
        "decoding",
        "solutions",
        "no\nanswer",
        "could\nnot tell",
        "code\nfailed",
        "cut\nshort",
    ]
    note = "Could not tell: neither right nor wrong was found; counted as not correct. Quarantined: could not be made."
    return Table("Solutions", [*heads, "quaran-\ntined", "executions\neach", "tokens\neach"], rows, note)


def group_tables(results: Sequence[Evaluated]) -> list[Table]:
    """For each benchmark and kind of group (level, subject, answer type), a row a group and a column a model and metric."""
    tables = []
    for name in dict.fromkeys(result.name for result in results):
        mine = [result for result in results if result.name == name]
        groups = groups_of(mine[0].problems)
        columns = [
            (result, score)
            for result in mine
            for metric in ("greedy", *(at(result.num_samples)[:2] if result.num_samples else []))
            if (score := result.score(metric)) is not None
        ]
        labels = [f"{result.label}\n{score.metric}" if len(mine) > 1 else score.metric for result, score in columns]
        for kind in dict.fromkeys(group.kind for group in groups):
            rows = [
                [group.name, f"{len(group.places):,}", *(_in_group(score, group.places) for _, score in columns)]
                for group in groups
                if group.kind == kind
            ]
            tables.append(Table(f"{mine[0].title} by {kind}", [kind, "problems", *labels], rows))
    return tables


def _in_group(score: Score, places: list[int]) -> str:
    share = float(score.values[places].mean())
    return f"{percent(share)}\n{ends(wilson(share * len(places), len(places)))}"


def comparison_table(comparisons: Sequence[Comparison]) -> Table | None:
    """Tests of the first model against the others on the same problems."""
    if not comparisons:
        return None
    rows = [
        [
            one.first.title,
            one.metric,
            f"{one.first.label}\n{one.second.label}",
            f"{100 * one.test.difference:+.1f}\n{ends(one.test.interval, signed=True)}",
            f"{one.test.num_first_only:,}\n{one.test.num_second_only:,}",
            "< 0.0001" if one.test.p_value < 0.0001 else f"{one.test.p_value:.4f}",
            one.test.test,
        ]
        for one in comparisons
    ]
    heads = ["benchmark", "metric", "models", "difference", "better on", "p", "test"]
    note = "First less second, in points, on the same problems, with 95% intervals; on how many problems each is the better one."
    return Table("Pairs of models", heads, rows, note)


@dataclass(frozen=True)
class PublishedColumn:
    """A benchmark and decoding for which somebody published results."""

    name: str
    title: str
    decoding: str
    reference: Reference
    size: int


def published_columns(results: Sequence[Evaluated], table: str) -> list[PublishedColumn]:
    """The columns of a published table: those of our benchmarks. UserError for a name that nobody has."""
    benchmarks = {result.name: result.benchmark for result in results if result.benchmark}
    columns = [
        PublishedColumn(name, benchmark.title, decoding, reference, benchmark.size)
        for name, benchmark in benchmarks.items()
        if (reference := benchmark.reference.get(table)) is not None
        for decoding in reference.results
    ]
    if not columns:
        known = {name: load_benchmark(name)[1].reference for name in known_benchmarks()} | {
            name: benchmark.reference for name, benchmark in benchmarks.items()
        }
        having = sorted(name for name, reference in known.items() if table in reference)
        if having:
            raise UserError(
                f"--published {table} has results for {', '.join(having)}; none of these runs has one of them"
            )
        raise UserError(
            f"no published results '{table}'. Known: {', '.join(sorted({k for r in known.values() for k in r}))}"
        )
    return columns


def published_table(results: Sequence[Evaluated], table: str) -> Table:
    """The published rows and ours: per cent, and how far the first of our models is ahead of each, with the interval."""
    columns = published_columns(results, table)
    models = list(
        dict.fromkeys(model for column in columns for each in column.reference.results.values() for model in each)
    )
    rows = [
        [model, *(_published_cell(results, column, model, column.decoding) for column in columns)] for model in models
    ]
    ours = list(dict.fromkeys(result.label for result in results))
    for label in ours:
        scores = (_our_score(results, column, label) for column in columns)
        rows.append([label, *(with_ends(score) for score in scores)])
    heads = ["model", *(f"{column.title}\n{column.decoding}" for column in columns)]
    sources = "; ".join(dict.fromkeys(column.reference.source for column in columns))
    note = (
        f"Published: {sources}. Below a published result: {ours[0]} less it, in points, with Newcombe's 95% interval for "
        "two separate sets of problems (on the same problems it is wider than need be)."
    )
    if any(column.reference.verdict == "judge" for column in columns) and not any(result.judged for result in results):
        note += " They were decided with a judge, ours by symbols alone: pipeline/judge.py adds one."
    if any(not result.is_whole for result in results):
        note += " Ours is not of the published number of problems."
    strong = frozenset(range(len(models), len(rows)))
    return Table(f"Beside the published results: {table}", heads, rows, note, strong)


def _our_score(results: Sequence[Evaluated], column: PublishedColumn, label: str) -> Score | None:
    mine = [result for result in results if result.name == column.name and result.label == label]
    if not mine:
        return None
    judged = column.reference.verdict == "judge" and bool(mine[0].judged)
    return mine[0].score(column.decoding, "either" if judged else "symbolic")


def _published_cell(results: Sequence[Evaluated], column: PublishedColumn, model: str, decoding: str) -> str:
    result = column.reference.results[decoding].get(model)
    if result is None:
        return "–"
    share = share_of(result, model)
    ours = _our_score(results, column, results[0].label)
    if ours is None:
        return percent(share)
    interval = difference_of_shares(ours.share, ours.num_problems, share, column.size)
    return f"{percent(share)}\n{100 * (ours.share - share):+.1f} {ends(interval, signed=True)}"


def tidy_rows(results: Sequence[Evaluated]) -> Iterator[dict[str, object]]:
    """Every score as numbers: shares between 0 and 1, whole and by group."""
    for result in results:
        for score in result.scores():
            yield _tidy(result, score, "all", "", range(score.num_problems))
            for group in groups_of(result.problems):
                yield _tidy(result, score, group.kind, group.name, group.places)


def _tidy(result: Evaluated, score: Score, kind: str, group: str, places: Sequence[int]) -> dict[str, object]:
    share = float(score.values[list(places)].mean())
    interval = score.interval if kind == "all" else wilson(share * len(places), len(places))
    return {
        "run": result.run.name,
        "model": result.any_set.sample_set.model,
        "benchmark": result.name,
        "metric": score.metric,
        "verdict": score.verdict,
        "group": kind,
        "name": group,
        "problems": len(places),
        "share": round(share, 6),
        "low": round(interval.low, 6),
        "high": round(interval.high, 6),
    }


def curve_rows(results: Sequence[Evaluated]) -> Iterator[dict[str, object]]:
    """Every curve as numbers, a row a k."""
    for result in results:
        for curve in result.curves:
            for k, (share, low, high) in enumerate(zip(curve.shares, curve.low, curve.high, strict=True), 1):
                yield {
                    "run": result.run.name,
                    "model": result.any_set.sample_set.model,
                    "benchmark": result.name,
                    "metric": curve.metric,
                    "k": k,
                    "share": round(float(share), 6),
                    "low": round(float(low), 6),
                    "high": round(float(high), 6),
                }
