"""The metrics are what their definitions say, written out in plain Python."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathmill.evaluation.metrics import (
    NO_ANSWER,
    average_at_k,
    class_numbers,
    expected_majority_at_k,
    leaders,
    majority_at_k,
    pass_at_k,
    random_orders,
)


@st.composite
def samples(draw, most_problems: int = 4, most_samples: int = 9):
    """Classes (NO_ANSWER among them) and verdicts of a few problems; equal answers may differ in their verdicts."""
    shape = draw(st.integers(1, most_problems)), draw(st.integers(1, most_samples))
    count = shape[0] * shape[1]
    classes = draw(st.lists(st.integers(NO_ANSWER, 3), min_size=count, max_size=count))
    verdicts = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return np.array(classes, np.int32).reshape(shape), np.array(verdicts, bool).reshape(shape)


def majority_place(classes: list[int]) -> int:
    """Place of the first member of the class with most votes; of equally many, the class seen first."""
    votes = Counter(each for each in classes if each != NO_ANSWER)
    if not votes:
        return NO_ANSWER
    best = max(votes.values())
    return min(classes.index(each) for each, count in votes.items() if count == best)


@given(samples())
def test_pass_at_k_is_the_share_of_draws_without_replacement_that_hold_a_correct_sample(made):
    _, verdicts = made
    found = pass_at_k(verdicts)

    for row, of_problem in zip(found, verdicts.tolist(), strict=True):
        for k in range(1, len(of_problem) + 1):
            draws = list(itertools.combinations(of_problem, k))
            assert row[k - 1] == pytest.approx(sum(map(any, draws)) / len(draws))


@given(st.integers(1, 300), st.data())
def test_pass_at_k_holds_for_hundreds_of_samples(count: int, data):
    correct = data.draw(st.integers(0, count))
    row = pass_at_k(np.array([[place < correct for place in range(count)]]))[0]
    k = data.draw(st.integers(1, count))

    assert row[k - 1] == pytest.approx(1 - math.comb(count - correct, k) / math.comb(count, k), abs=1e-12)


@given(samples())
def test_average_at_k_is_the_mean_of_the_first_k(made):
    _, verdicts = made

    for row, of_problem in zip(average_at_k(verdicts), verdicts.tolist(), strict=True):
        assert row.tolist() == pytest.approx([sum(of_problem[:k]) / k for k in range(1, len(of_problem) + 1)])


@given(samples())
def test_majority_at_k_is_the_verdict_of_the_first_answer_of_the_largest_class_seen_first(made):
    classes, verdicts = made
    places, found = leaders(classes), majority_at_k(classes, verdicts)

    for row in range(len(classes)):
        for k in range(1, classes.shape[1] + 1):
            place = majority_place(classes[row, :k].tolist())
            assert places[row, k - 1] == place
            assert found[row, k - 1] == (place != NO_ANSWER and verdicts[row, place])


@settings(max_examples=30)
@given(samples(most_problems=2, most_samples=4))
def test_over_all_orders_the_curve_is_the_expected_majority(made):
    classes, verdicts = made
    count = classes.shape[1]
    orders = np.array(list(itertools.permutations(range(count))), np.int32)
    found = expected_majority_at_k(classes, verdicts, orders)

    for row in range(len(classes)):
        for k in range(1, count + 1):
            right = 0
            for order in itertools.permutations(range(count), k):
                place = majority_place([classes[row, each] for each in order])
                right += place != NO_ANSWER and verdicts[row, order[place]]
            assert found[row, k - 1] == pytest.approx(right / math.perm(count, k))


@given(samples())
def test_with_one_sample_all_metrics_agree_where_every_correct_sample_has_an_answer(made):
    classes, verdicts = made
    verdicts &= classes != NO_ANSWER

    assert majority_at_k(classes, verdicts)[:, 0].tolist() == average_at_k(verdicts)[:, 0].tolist()


def test_nobody_votes_where_no_sample_has_an_answer():
    classes = np.full((2, 3), NO_ANSWER, np.int32)

    assert not majority_at_k(classes, np.ones((2, 3), bool)).any()


def test_classes_become_numbers_by_their_places():
    assert class_numbers([[(0, 2), (3,)], []], 4).tolist() == [[0, -1, 0, 1], [-1] * 4]


def test_random_orders_are_orders_and_the_same_ones_again():
    orders = random_orders(7, 5)

    assert all(sorted(order) == list(range(7)) for order in orders.tolist())
    assert (orders == random_orders(7, 5)).all()
