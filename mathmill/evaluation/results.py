"""What a model reached on a benchmark: greedy, pass@k, avg@k, majority@k, with intervals; by group; beside another model."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mathmill.errors import UserError
from mathmill.evaluation.intervals import Interval, PairedTest, bootstrap, paired_test, wilson
from mathmill.evaluation.metrics import (
    Booleans,
    Numbers,
    average_at_k,
    expected_majority_at_k,
    leaders,
    pass_at_k,
    random_orders,
    taken,
)
from mathmill.evaluation.samples import CORRECT, Samples, Verdicts, load_samples, load_verdicts
from mathmill.evaluation.sets import Kept, as_it_is_now, benchmark_of
from mathmill.generation.sets import set_folders
from mathmill.grading import GradingPool
from mathmill.grading.vote import equal_by
from mathmill.problems.benchmark import Benchmark
from mathmill.records import Problem
from mathmill.run import Run

ORDERS = 64
"""Orders of the samples that the curve of majority@k is averaged over."""
MOST_WORKERS = 8
GROUPS: dict[str, Callable[[Problem], str | None]] = {
    "level": lambda problem: None if problem.level is None else f"level {problem.level}",
    "subject": lambda problem: problem.subject,
    "answer type": lambda problem: problem.answer_type,
}


@dataclass(frozen=True)
class Score:
    """A share of problems, with its interval and the value of each problem (0 to 1)."""

    metric: str
    """`greedy`, `avg@8`, `pass@8`, `majority@8`."""
    verdict: str
    """`symbolic`, `judge`, `either` or `both`."""
    values: NDArray[np.float64]
    interval: Interval

    @property
    def share(self) -> float:
        return float(self.values.mean())

    @property
    def num_problems(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Curve:
    """A metric at every k from 1 on, with the ends of its interval."""

    metric: str
    shares: Numbers
    low: Numbers
    high: Numbers


@dataclass
class Evaluated:
    """A model on a benchmark: a greedy set, a sampled one, or both, of the same problems."""

    run: Run
    label: str
    """The model; where several runs have the same, the run's name too."""
    name: str
    benchmark: Benchmark | None
    """None: problems that are no benchmark's."""
    greedy: Samples | None = None
    sampled: Samples | None = None
    judged: dict[str, Verdicts] = field(default_factory=dict)
    """The judge's verdicts by decoding, `greedy` or `sampled`; empty where nobody judged."""
    _scores: dict[tuple[str, str], Score | None] = field(default_factory=dict)

    @property
    def any_set(self) -> Samples:
        one = self.greedy if self.greedy is not None else self.sampled
        assert one is not None
        return one

    @property
    def problems(self) -> list[Problem]:
        return self.any_set.problems

    @property
    def title(self) -> str:
        return self.benchmark.title if self.benchmark else self.name

    @property
    def num_samples(self) -> int:
        return self.sampled.num_samples if self.sampled is not None else 0

    @property
    def is_whole(self) -> bool:
        """Whether it is as many problems as were published."""
        return self.benchmark is None or self.benchmark.size == len(self.problems)

    @property
    def verdict_names(self) -> list[str]:
        return ["symbolic", "judge", "either", "both"] if self.judged else ["symbolic"]

    def verdicts(self, decoding: str, verdict: str = "symbolic") -> Booleans:
        """Which samples of a decoding are correct by which verdict: problems x samples."""
        samples = self.greedy if decoding == "greedy" else self.sampled
        assert samples is not None
        symbolic = samples.is_correct
        if verdict == "symbolic":
            return symbolic
        judge = self.judged[decoding] == CORRECT
        return {"judge": judge, "either": symbolic | judge, "both": symbolic & judge}[verdict]

    @cached_property
    def leaders(self) -> NDArray[np.int32]:
        """Place of the majority's answer at every k."""
        assert self.sampled is not None
        return leaders(self.sampled.class_numbers)

    def score(self, metric: str, verdict: str = "symbolic") -> Score | None:
        """`greedy`, `avg@k`, `pass@k` or `majority@k`; None where there are too few samples for it."""
        if (metric, verdict) not in self._scores:
            self._scores[metric, verdict] = self._score(metric, verdict)
        return self._scores[metric, verdict]

    def _score(self, metric: str, verdict: str) -> Score | None:
        if metric == "greedy":
            if self.greedy is None:
                return None
            return _binary(metric, verdict, self.verdicts("greedy", verdict)[:, 0])
        kind, _, count = metric.partition("@")
        if self.sampled is None or not 1 <= int(count) <= self.num_samples:
            return None
        column = int(count) - 1
        is_correct = self.verdicts("sampled", verdict)
        if kind == "majority":
            return _binary(metric, verdict, taken(is_correct, self.leaders[:, column : column + 1])[:, 0])
        values = (average_at_k if kind == "avg" else pass_at_k)(is_correct)[:, column]
        low, high = bootstrap(values[:, None])[:, 0]
        return Score(metric, verdict, values, Interval(float(low), float(high)))

    def scores(self) -> list[Score]:
        """The scores of the main table: greedy, and avg, majority and pass at the largest k; by every verdict."""
        count = self.num_samples
        metrics = ["greedy", f"avg@{count}", f"majority@{count}", f"pass@{count}"]
        found = [self.score(metric, verdict) for verdict in self.verdict_names for metric in metrics]
        return [score for score in found if score is not None]

    @cached_property
    def curves(self) -> list[Curve]:
        """pass@k and majority@k at every k; majority is averaged over orders of the samples."""
        if self.sampled is None or self.num_samples < 2:
            return []
        is_correct, classes = self.sampled.is_correct, self.sampled.class_numbers
        orders = random_orders(self.num_samples, ORDERS)
        values = {
            "pass@k": pass_at_k(is_correct),
            "majority@k": expected_majority_at_k(classes, is_correct, orders),
        }
        ends = bootstrap(np.concatenate(list(values.values()), axis=1)).reshape(2, len(values), -1)
        return [
            Curve(metric, table.mean(axis=0), ends[0, number], ends[1, number])
            for number, (metric, table) in enumerate(values.items())
        ]


def _binary(metric: str, verdict: str, is_correct: Booleans) -> Score:
    return Score(metric, verdict, is_correct.astype(float), wilson(int(is_correct.sum()), len(is_correct)))


@dataclass(frozen=True)
class Group:
    """Problems that have something in common, and how they went."""

    kind: str
    name: str
    places: list[int]


def groups_of(problems: Sequence[Problem]) -> list[Group]:
    """The problems by level, subject and answer type, each kind that divides them into 2 to 40 parts."""
    found = []
    for kind, name_of in GROUPS.items():
        places: dict[str, list[int]] = {}
        for place, problem in enumerate(problems):
            places.setdefault(name_of(problem) or "not said", []).append(place)
        if 2 <= len(places) <= 40:
            found += [Group(kind, name, places[name]) for name in sorted(places)]
    return found


@dataclass(frozen=True)
class Counts:
    """How the solutions of a set went, apart from right and wrong."""

    decoding: str
    num_solutions: int
    no_answer: int
    could_not_tell: int
    quarantined: int
    with_failed_block: int
    cut: int
    blocks_each: float
    tokens_each: float


def counts_of(samples: Samples) -> Counts:
    made = samples.made
    number = max(1, int(made.sum()))
    return Counts(
        decoding="greedy" if samples.is_greedy else f"{samples.num_samples} samples",
        num_solutions=int(made.sum()),
        no_answer=int((made & ~samples.has_answer).sum()),
        could_not_tell=int((samples.verdicts == -1).sum()),
        quarantined=int((~made).sum()),
        with_failed_block=int((samples.num_failed_blocks > 0).sum()),
        cut=int(samples.is_cut.sum()),
        blocks_each=float(samples.num_blocks.sum() / number),
        tokens_each=float(samples.num_tokens.sum() / number),
    )


@dataclass(frozen=True)
class Comparison:
    """Two models on one benchmark by one metric, problem by problem."""

    first: Evaluated
    second: Evaluated
    metric: str
    test: PairedTest


def compare_all(results: Sequence[Evaluated]) -> list[Comparison]:
    """The first model of every benchmark against each other one, by what both have."""
    comparisons = []
    for name in dict.fromkeys(result.name for result in results):
        first, *others = [result for result in results if result.name == name]
        for other in others:
            count = min(first.num_samples, other.num_samples)
            for metric in ["greedy", f"avg@{count}", f"majority@{count}"]:
                one, two = first.score(metric), other.score(metric)
                if one is not None and two is not None:
                    comparisons.append(Comparison(first, other, metric, paired_test(one.values, two.values)))
    return comparisons


def workers() -> int:
    """Processes that compare answers for a report: it may be made on a login node, which others share."""
    return min(MOST_WORKERS, max(2, len(os.sched_getaffinity(0))))


def evaluate_runs(
    runs: Sequence[Run],
    *,
    judge: str | None = None,
    sets: Sequence[str] | None = None,
    advance: Callable[[str], None] = lambda what: None,
) -> list[Evaluated]:
    """The results of all runs, a benchmark's side by side. UserError for runs that cannot be compared or are unfinished.

    `sets`: the sample sets of these names alone, in this order; None: every set of the runs.
    """
    results = [result for run in runs for result in _load_run(run, sets, advance)]
    refuse_other_problems(results)
    pool = GradingPool(workers())
    try:
        for result in results:
            advance(f"votes of {result.label} on {result.title}")
            if result.sampled is not None:
                result.sampled.vote(equal_by(pool))
            _use_policy(result, pool)
    finally:
        pool.close()
    for result in results:
        _use_judge(result, judge)
    _label(results)
    order = list(dict.fromkeys(result.name for result in results))
    return sorted(results, key=lambda result: order.index(result.name))


def _load_run(run: Run, sets: Sequence[str] | None, advance: Callable[[str], None]) -> list[Evaluated]:
    found: dict[tuple[str, str, str], Evaluated] = {}
    folders = set_folders(run)
    if sets is not None:
        by_name = {folder.folder.name: folder for folder in folders}
        folders = [by_name[name] for name in sets if name in by_name]
    if not folders:
        raise UserError(f"{run.folder} has no solutions; make some: python pipeline/run_evaluation.py")
    for folder in folders:
        advance(f"reading {run.name}: {folder.folder.name}")
        samples = load_samples(folder)
        if unknown := sum(problem.expected_answer is None for problem in samples.problems):
            raise UserError(
                f"{folder.folder}: {unknown:,} of {samples.num_problems:,} problems have no expected_answer, so there is "
                "no accuracy of them; leave them out of what is evaluated"
            )
        first = samples.problems[0]
        known = benchmark_of(run, folder.folder.name, first.dataset, first.split, samples.sample_set.model)
        name = known[0] if known else f"{first.dataset}:{first.split}" if first.split else first.dataset
        key = (name, samples.sample_set.model, samples.sample_set.prompt.name)
        result = found.setdefault(key, Evaluated(run, samples.sample_set.model, name, known[1] if known else None))
        decoding = "greedy" if samples.is_greedy else "sampled"
        if getattr(result, decoding) is not None:
            raise UserError(
                f"{run.folder}: two sets of {name} are {decoding} ({folder.folder.name} is one); summarize them apart"
            )
        setattr(result, decoding, samples)
    for result in found.values():
        if isinstance(result.benchmark, Kept):
            result.benchmark = as_it_is_now(run, result.benchmark)
    return list(found.values())


def refuse_other_problems(results: Sequence[Evaluated]) -> None:
    """UserError where results of one name are not of the same problems, or runs have nothing in common."""
    first: dict[str, Samples] = {}
    for result in results:
        for samples in (result.greedy, result.sampled):
            if samples is None:
                continue
            other = first.setdefault(result.name, samples)
            if other.sample_set.problems_sha != samples.sample_set.problems_sha:
                raise UserError(
                    f"{other.folder.folder} and {samples.folder.folder} are {result.name} with different problems "
                    f"({other.num_problems:,} and {samples.num_problems:,}); they cannot be compared"
                )
    by_run: dict[str, set[str]] = {}
    for result in results:
        by_run.setdefault(str(result.run.folder), set()).add(result.name)
    names = list(by_run.items())
    for run, mine in names[1:]:
        if not mine & names[0][1]:
            raise UserError(
                f"{names[0][0]} and {run} have no benchmark in common ({', '.join(sorted(names[0][1]))} and "
                f"{', '.join(sorted(mine))}); summarize them apart"
            )


def _use_policy(result: Evaluated, pool: GradingPool) -> None:
    """A benchmark with another policy than the worker's: its own verdicts, made by now or just now."""
    if result.benchmark is None or result.benchmark.policy == "default":
        return
    from mathmill.generation.regrade import regrade

    policy = result.benchmark.policy
    own = GradingPool(workers(), policy=policy)
    try:
        for samples in (result.greedy, result.sampled):
            if samples is not None:
                regrade(samples.folder, policy, own)
                samples.verdicts[:] = load_verdicts(samples, policy)
    finally:
        own.close()


def _use_judge(result: Evaluated, judge: str | None) -> None:
    if judge is None:
        return
    for decoding in ("greedy", "sampled"):
        samples = getattr(result, decoding)
        if samples is not None:
            result.judged[decoding] = load_verdicts(samples, judge)


def _label(results: Sequence[Evaluated]) -> None:
    """Models by name; those that two runs have by the run's name too."""
    runs: dict[str, set[str]] = {}
    for result in results:
        runs.setdefault(result.label, set()).add(result.run.name)
    for result in results:
        if len(runs[result.any_set.sample_set.model]) > 1:
            result.label = f"{result.label} ({result.run.name})"
