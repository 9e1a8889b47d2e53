"""Intervals of what was measured, and tests of two models on the same problems."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 10_000
LEVEL = 0.95
_Z = 1.959963984540054
"""Of the normal distribution, for LEVEL."""
_WEIGHTS_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class Interval:
    """Ends of a 95% interval."""

    low: float
    high: float


def wilson(num_correct: float, number: int) -> Interval:
    """Wilson's score interval of a share, for problems that are right or wrong."""
    if not number:
        return Interval(0.0, 1.0)
    share, spread = num_correct / number, _Z**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * sqrt(share * (1 - share) / number + spread / number / 4) / (1 + spread)
    return Interval(min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def difference_of_shares(one: float, num_one: int, other: float, num_other: int) -> Interval:
    """Newcombe's interval of the difference of two independent shares (his method 10).

    Two models on the same problems go up and down together, so for them it is wider than need be.
    """
    a, b = wilson(one * num_one, num_one), wilson(other * num_other, num_other)
    difference = one - other
    low = sqrt((one - a.low) ** 2 + (b.high - other) ** 2)
    high = sqrt((a.high - one) ** 2 + (other - b.low) ** 2)
    return Interval(difference - low, difference + high)


def bootstrap(values: ArrayLike, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Ends of the interval of each column's mean, problems drawn anew with replacement: 2 x columns.

    `values`: problems x columns (any number: every k of every metric takes part in the same draws), each in 0 to 1.
    """
    table = np.asarray(values, np.float32)
    return np.quantile(_draw(table, draws, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def _draw(table: NDArray[np.float32], draws: int, seed: int) -> NDArray[np.float32]:
    """Means of the columns in every draw: draws x columns."""
    num_problems = len(table)
    generator = np.random.default_rng(seed)
    means = np.empty((draws, table.shape[1]), np.float32)
    at_once = max(1, min(draws, _WEIGHTS_AT_ONCE // num_problems))
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        drawn = generator.integers(num_problems, size=(count, num_problems), dtype=np.int32)
        drawn += np.arange(count, dtype=np.int32)[:, None] * num_problems
        times = np.bincount(drawn.ravel(), minlength=count * num_problems).reshape(count, num_problems)
        means[start : start + count] = times.astype(np.float32) @ table
    return means / np.float32(num_problems)


def difference_of_groups(
    one: ArrayLike, other: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `one` less that of `other`, and the ends of its interval; both are models x problems, of the same problems.

    Problems are drawn anew with replacement, the same for both, and within each group its models (seeds of a training).
    """
    first, second = np.asarray(one, float), np.asarray(other, float)
    means = _draw(np.concatenate([first, second]).T.astype(np.float32), draws, seed)
    generator = np.random.default_rng([seed, 1])
    drawn = _over_models(means[:, : len(first)], generator) - _over_models(means[:, len(first) :], generator)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(first.mean() - second.mean()), float(low), float(high)


def mean_of_group(values: ArrayLike, draws: int = DRAWS, seed: int = 0) -> tuple[float, float, float]:
    """Mean of models x problems and the ends of its interval: Wilson's for one model that is right or wrong, else as above."""
    table = np.asarray(values, float)
    if len(table) == 1 and np.isin(table, (0, 1)).all():
        interval = wilson(int(table.sum()), table.shape[1])
        return float(table.mean()), interval.low, interval.high
    drawn = _over_models(_draw(table.T.astype(np.float32), draws, seed), np.random.default_rng([seed, 1]))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(table.mean()), float(low), float(high)


def _over_models(means: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float64]:
    """Of draws x models: the mean of as many models drawn anew, for every draw."""
    number = means.shape[1]
    return (means * generator.multinomial(number, [1 / number] * number, size=len(means))).sum(axis=1) / number


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same problems: the difference of their means (first less second), its interval, and a p-value."""

    difference: float
    interval: Interval
    p_value: float
    test: str
    num_first_only: int
    num_second_only: int


def paired_test(first: ArrayLike, second: ArrayLike, draws: int = DRAWS, seed: int = 0) -> PairedTest:
    """Compare one value a problem (0 to 1) of two models, problem by problem.

    Right or wrong: McNemar's exact test, which looks at the problems that only one of them solves. Otherwise (avg@k): the
    signs of the differences are drawn at random. The interval is drawn by problems in both cases.
    """
    one, other = np.asarray(first, float), np.asarray(second, float)
    differences = one - other
    low, high = np.quantile(
        _draw(differences[:, None].astype(np.float32), draws, seed)[:, 0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    )
    ahead, behind = int((differences > 0).sum()), int((differences < 0).sum())
    if np.isin(one, (0, 1)).all() and np.isin(other, (0, 1)).all():
        p_value, test = mcnemar(ahead, behind), "McNemar, exact"
    else:
        p_value, test = _sign_flips(differences, draws, seed), f"{draws:,} random signs"
    return PairedTest(float(differences.mean()), Interval(float(low), float(high)), p_value, test, ahead, behind)


def mcnemar(ahead: int, behind: int) -> float:
    """Chance of a split at least as uneven of the problems that only one model solves, were both models alike."""
    from scipy.stats import binomtest

    return float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def _sign_flips(differences: NDArray[np.float64], draws: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    moved = differences[differences != 0]
    if not len(moved):
        return 1.0
    found, at_once = 1, max(1, _WEIGHTS_AT_ONCE // len(moved))
    for start in range(0, draws, at_once):
        signs = generator.integers(2, size=(min(at_once, draws - start), len(moved)), dtype=np.int8) * 2.0 - 1.0
        found += int((np.abs(signs @ moved) >= abs(moved.sum()) - 1e-9).sum())
    return found / (draws + 1)
