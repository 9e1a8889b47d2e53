"""Is this answer that answer."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.grading import grade
from mathmill.grading.compare import grade_quickly, grade_slowly
from mathmill.grading.policy import POLICIES

TABLES = sorted((Path(__file__).parents[1] / "cases" / "grading").glob("*.yaml"))
SYMBOLIC = {"constants", "expressions", "heads_and_equations", "intervals", "lists", "matrices", "tuples", "units"}
"""Tables whose rows need SymPy, a minute of it on a busy machine."""
VERDICTS = {"same": True, "different": False}


def rows(table: Path) -> list[tuple[str, str, bool, str | None]]:
    """Predicted and expected answer, whether they are the same, and the rule where it is part of the claim."""
    return [(row[0], row[1], VERDICTS[row[2]], *row[3:], None)[:4] for row in yaml.safe_load(table.read_text())]


@pytest.mark.parametrize(
    "table",
    [pytest.param(table, marks=[pytest.mark.slow] * (table.stem in SYMBOLIC), id=table.stem) for table in TABLES],
)
def test_every_row_of_the_table_comes_out(table):
    wrong = []
    for predicted, expected, is_same, rule in rows(table):
        verdict = grade(predicted, expected)
        if verdict.is_correct is not is_same or rule not in (None, verdict.rule):
            wrong.append((predicted, expected, verdict))

    assert wrong == []


def test_the_tables_are_many_and_in_balance():
    every = [is_same for table in TABLES for _, _, is_same, _ in rows(table)]

    assert len(every) >= 600 and 0.4 < sum(every) / len(every) < 0.6


@settings(max_examples=50)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_only_to_themselves(one, other):
    assert grade_quickly(str(one), f"{other:,}").is_correct == (one == other)


@settings(max_examples=50)
@given(st.integers(-(10**6), 10**6), st.integers(1, 1000))
def test_a_float_that_python_prints_equals_the_fraction_it_came_from(over, under):
    printed = repr(over / under)
    verdict = grade_quickly(printed, rf"\frac{{{over}}}{{{under}}}").is_correct
    assert verdict or len(printed.split(".")[-1]) < (POLICIES["default"].decimal_digits or 0) or "e" in printed


@settings(max_examples=50)
@given(st.fractions(max_denominator=999))
def test_a_fraction_equals_its_spellings(value):
    over, under = value.numerator, value.denominator
    for spelling in (f"{over}/{under}", rf"\dfrac{{{over}}}{{{under}}}", f"${over} / {under}$."):
        assert grade_quickly(spelling, rf"\frac{{{over}}}{{{under}}}").is_correct


@settings(max_examples=50)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_quick_rules_never_fail_and_never_depend_on_the_order(one, other):
    verdict, mirrored = grade_quickly(one, other), grade_quickly(other, one)
    if one.strip(" .$") and other.strip(" .$") and verdict and verdict.rule not in ("no-answer", "no-expected"):
        assert mirrored is not None and verdict.is_correct == mirrored.is_correct


def test_a_missing_answer_is_wrong_and_a_missing_gold_answer_cannot_be_told():
    assert (grade(None, "5").is_correct, grade(" ", "5").rule) == (False, "no-answer")
    assert (grade("5", None).is_correct, grade(None, None).rule) == (None, "no-expected")


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="default, omi1, strict"):
        grade("1", "1", policy="loose")


@pytest.mark.parametrize("policy", ["default", "strict", "omi1"])
def test_a_policy_forgives_what_it_says_and_no_more(policy):
    place = 2 + ["default", "strict", "omi1"].index(policy)
    table = yaml.safe_load((TABLES[0].parents[1] / "policies.yaml").read_text())
    verdicts = [(row[0], row[1], VERDICTS[row[place]], grade(row[0], row[1], policy)) for row in table]

    assert [row for row in verdicts if row[2] is not row[3].is_correct] == []


QUICK = st.integers(-(10**6), 10**6) | st.fractions(max_denominator=99) | st.decimals(-99, 99, places=2)


def written(number) -> str:
    return rf"\frac{{{number.numerator}}}{{{number.denominator}}}" if isinstance(number, Fraction) else str(number)


@settings(max_examples=60)
@given(QUICK, QUICK)
def test_the_quick_rules_and_math_verify_agree_on_plain_numbers(one, other):
    for pair in ((written(one), written(other)), (written(one), written(one))):
        quick = grade_quickly(*pair)
        assert quick is not None and quick.is_correct == grade_slowly(*pair).is_correct


def test_importing_the_room_imports_no_sympy():
    script = "import sys, mathmill.grading; sys.exit('sympy' in sys.modules or 'math_verify' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
