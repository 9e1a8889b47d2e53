"""Voting by classes of equal answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.grading import GradingPool
from mathmill.grading.vote import MOST_QUESTIONS, answer_classes, equal_by, majority


def refuse(pairs):
    raise AssertionError(f"asked about {pairs}")


@pytest.fixture(scope="module")
def equal():
    pool = GradingPool(workers=1)
    yield equal_by(pool)
    pool.close()


def test_equal_answers_vote_together_whatever_their_spelling(equal):
    answers = [
        "7",
        r"\frac{1}{2}",
        "0.5",
        r"\dfrac12",
        "7",
        r"\sqrt{8}",
        r"2\sqrt{2}",
        r"\sqrt 8",
        r"\frac{4}{\sqrt2}",
        None,
    ]
    (classes,) = answer_classes([answers], equal)

    assert [(each.answer, each.members) for each in classes] == [
        (r"\sqrt{8}", (5, 6, 7, 8)), (r"\frac{1}{2}", (1, 2, 3)), ("7", (0, 4)),
    ]  # fmt: skip


def test_numbers_and_one_spelling_are_counted_without_asking():
    problems = [["5", "5.0", "$5$", "6"], [r"\frac{1}{2}", "0.5", "3"], [None, " "], []]

    assert majority(problems, refuse) == ["5", r"\frac{1}{2}", None, None]


def test_nothing_is_asked_once_the_winner_is_sure():
    assert majority([["x", "x", "x", r"\sqrt{2}", "y"]], refuse) == ["x"]


def test_a_tie_goes_to_the_answer_seen_first():
    assert majority([["2", "1", "1", "2"], ["1", "2", "2", "1"]], refuse) == ["2", "1"]


def test_majority_at_k_counts_the_first_k_samples():
    answers = ["3", "4", "4", "3", "3"]

    assert [majority([answers], refuse, k)[0] for k in (1, 3, 5)] == ["3", "4", "3"]


def test_raw_strings_would_have_split_the_winner(equal):
    answers = [r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", r"\sqrt{\frac12}", "1", "1"]

    assert majority([answers], equal) == [r"\frac{\sqrt{2}}{2}"]


def test_what_could_not_be_told_joins_nothing():
    (classes,) = answer_classes([["x", "y", "x"]], lambda pairs: [False for _ in pairs])

    assert [each.votes for each in classes] == [2, 1]


def test_questions_about_one_problem_are_bounded():
    asked = []

    def equal(pairs):
        asked.extend(pairs)
        return [False] * len(pairs)

    (classes,) = answer_classes([[f"x_{{{n}}}+y" for n in range(200)]], equal)
    assert len(classes) == 200 and len(asked) == MOST_QUESTIONS


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 5).map(str), st.integers(0, 5).map(lambda n: f"{n}.0")), max_size=40)
)
def test_every_answer_votes_once_and_classes_are_those_of_the_values(answers):
    (classes,) = answer_classes([answers], refuse)

    places = sorted(place for each in classes for place in each.members)
    assert places == [place for place, answer in enumerate(answers) if answer is not None]
    values = [{float(answers[place]) for place in each.members} for each in classes]
    assert all(len(value) == 1 for value in values) and len(values) == len({min(value) for value in values})
    assert [each.votes for each in classes] == sorted((each.votes for each in classes), reverse=True)
