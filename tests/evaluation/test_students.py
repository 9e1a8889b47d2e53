"""Students beside what they were before and beside a control: intervals, and sentences that claim no more than these."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.evaluation.intervals import difference_of_groups, mean_of_group
from mathmill.evaluation.students import Line, StudentsWork, Taught, claims, students_table

WORK = StudentsWork(base="base", students={"selected": ["a", "b"], "all": ["c", "d"]}, control="all", sets={})
shares = st.integers(1, 40).flatmap(
    lambda problems: st.tuples(
        *[
            st.lists(
                st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=problems, max_size=problems), min_size=1, max_size=3
            )
        ]
        * 2
    )
)


@given(shares)
def test_a_difference_lies_within_its_interval_and_turns_its_sign_with_the_groups(groups):
    one, other = map(np.array, groups)
    middle, low, high = difference_of_groups(one, other, draws=400)
    assert middle == pytest.approx(one.mean() - other.mean())
    assert low - 1e-6 <= middle <= high + 1e-6 or len(one) + len(other) > 2  # few seeds can be drawn askew
    turned = difference_of_groups(other, one, draws=400)
    assert turned[0] == pytest.approx(-middle)


def test_the_interval_of_one_model_is_that_of_a_share_and_never_of_width_0():
    middle, low, high = mean_of_group([[1.0] * 30 + [0.0] * 70])
    assert (
        middle == pytest.approx(0.3)
        and low == pytest.approx(0.219, abs=0.001)
        and high == pytest.approx(0.396, abs=0.001)
    )
    assert mean_of_group([[0.0] * 20])[2] > 0.1


def test_seeds_that_differ_widen_the_interval():
    problems = np.arange(200) % 2
    alike = np.array([problems, problems, problems], float)
    apart = np.array([problems, problems * 0, problems * 0 + 1], float)
    nothing = np.zeros((1, 200))
    width = [
        high - low for _, low, high in (difference_of_groups(alike, nothing), difference_of_groups(apart, nothing))
    ]
    assert width[1] > 2 * width[0]


def line(group: str, less_base=None, less_control=None) -> Line:
    return Line(
        benchmark="words", metric="greedy", group=group, num_problems=200, shares=[0.5, 0.6], share=(0.55, 0.5, 0.6),
        less_base=less_base, less_control=less_control,
    )  # fmt: skip


UP, DOWN, LEVEL = (0.5, 0.4, 0.6), (-0.1, -0.2, -0.05), (0.02, -0.01, 0.05)


@pytest.mark.parametrize(("less_base", "less_control", "said"), [
    (UP, LEVEL, ["students trained on selected solve more than before: +50.0 points [+40.0, +60.0]",
                 "and those trained on all are not told apart by these numbers: +2.0 points [-1.0, +5.0]"]),
    (DOWN, UP, ["solve less than before: -10.0 points", "solve more than trained on all: +50.0 points"]),
    (LEVEL, DOWN, ["are not told apart by these numbers", "solve less than trained on all: -10.0 points"]),
])  # fmt: skip
def test_the_sentences_claim_what_the_intervals_carry(less_base, less_control, said):
    found = claims(WORK, [line("base"), line("selected", less_base, less_control)])
    assert len(found) == 2
    for sentence, part in zip(found, said, strict=True):
        assert part in sentence


def test_the_table_has_a_row_a_group_with_every_seed():
    lines = [line("base"), line("selected", (0.5, 0.4, 0.6), (0.0, -0.1, 0.1))]
    table = students_table(WORK, lines, {"selected": Taught(rows=1200, correct=1000, asked=1200)})
    assert [row[2] for row in table.rows] == ["nothing (before)", "selected"]
    assert [row[3] for row in table.rows] == ["–", "1,200\n83.3% correct"]
    assert table.rows[1][5] == "50.0 60.0" and table.rows[0][6] == "–"
    assert table.heads[-1] == "minus all" and "asked for" not in table.note


def test_a_training_set_with_fewer_rows_than_asked_for_is_told():
    taught = {"selected": Taught(rows=900, correct=900, asked=1200), "all": Taught(rows=0, correct=0)}
    table = students_table(WORK, [line("base"), line("selected", UP, UP), line("all", UP)], taught)
    assert [row[3] for row in table.rows] == ["–", "900 of 1,200 asked\n100.0% correct", "0\nnone correct"]
    assert "Training set selected has 900 rows; 1,200 were asked for" in table.note
    assert "Training set all" not in table.note
