"""Intervals and tests in pairs against definitions and known values."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.evaluation.intervals import bootstrap, difference_of_shares, mcnemar, paired_test, wilson


def test_wilson_is_the_score_interval_of_a_textbook_case():
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I: 81 of 263, and 1 of 29
    assert (round(wilson(81, 263).low, 4), round(wilson(81, 263).high, 4)) == (0.2553, 0.3662)
    assert (round(wilson(1, 29).low, 4), round(wilson(1, 29).high, 4)) == (0.0061, 0.1718)


@given(st.integers(1, 500), st.data())
def test_wilsons_ends_are_where_the_score_test_just_refuses(number: int, data):
    correct = data.draw(st.integers(0, number))
    interval = wilson(correct, number)

    assert 0 <= interval.low <= correct / number <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(correct / number - end) / math.sqrt(end * (1 - end) / number) == pytest.approx(1.95996, abs=1e-3)


def test_the_difference_of_shares_is_newcombes():
    # Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10: 56/70 less 48/80
    interval = difference_of_shares(56 / 70, 70, 48 / 80, 80)

    assert (round(interval.low, 4), round(interval.high, 4)) == (0.0524, 0.3339)


def test_bootstrap_ends_are_the_quantiles_of_resampled_means():
    generator = np.random.default_rng(3)
    values = (generator.random((400, 3)) < [0.2, 0.5, 0.9]).astype(float)
    low, high = bootstrap(values, draws=4000)

    for column, share in enumerate(values.mean(axis=0)):
        error = math.sqrt(share * (1 - share) / 400)
        assert low[column] == pytest.approx(share - 1.96 * error, abs=0.25 * error)
        assert high[column] == pytest.approx(share + 1.96 * error, abs=0.25 * error)
    assert (bootstrap(values, draws=500) == bootstrap(values, draws=500)).all()


@given(st.integers(0, 12), st.integers(0, 12))
@pytest.mark.slow
def test_mcnemar_is_the_exact_two_sided_binomial(ahead: int, behind: int):
    total = ahead + behind
    chance = [math.comb(total, each) / 2**total for each in range(total + 1)]
    expected = sum(each for each in chance if each <= chance[ahead] * (1 + 1e-7))

    assert mcnemar(ahead, behind) == pytest.approx(min(1.0, expected))


@pytest.mark.slow
def test_a_paired_test_looks_only_at_the_problems_that_differ():
    first, second = [1, 1, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 1]
    found = paired_test(first, second)

    assert (found.difference, found.num_first_only, found.num_second_only) == (3 / 8, 4, 1)
    assert found.p_value == pytest.approx(mcnemar(4, 1))
    assert found.interval.low <= found.difference <= found.interval.high


def test_means_of_samples_are_compared_by_drawing_the_signs_of_their_differences():
    first, second = np.array([0.5, 0.75, 1.0, 0.25, 0.5]), np.array([0.25, 0.25, 0.5, 0.5, 0.5])
    differences = first - second
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=5)]
    exact = sum(each >= abs(differences.sum()) - 1e-12 for each in sums) / len(sums)

    assert paired_test(first, second).p_value == pytest.approx(exact, abs=0.02)


def test_equal_models_differ_by_nothing():
    same = paired_test([1, 0, 1], [1, 0, 1])

    assert (same.difference, same.p_value, same.interval.low, same.interval.high) == (0, 1, 0, 0)
    assert paired_test([0.5, 0.25], [0.5, 0.25]).p_value == 1
