"""Masked solutions: what counts as telling the answer, which candidate is selected, and none of a benchmark's leaks."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from mathmill.grading import GradingPool, grade
from mathmill.records import Problem
from mathmill.selection.leaks import leaks_of, leaks_quickly
from mathmill.selection.masks import MaskOptions, kinds_of, select_masks


@pytest.fixture(scope="module")
def pool():
    grading = GradingPool(workers=2)
    yield grading
    grading.close()


def leak(text: str, answer: str, pool: GradingPool) -> str | None:
    found, slow = leaks_quickly(text, answer, pool)
    return found or leaks_of([(slow, answer)], pool)[0]


TELL = [
    ("So M = 12.", "12"),
    ("So there are twelve of them.", "12"),
    ("That is 24/2 apples.", "12"),
    ("The share is 50%.", "\\frac{1}{2}"),
    ("It costs $1,200 in all", "1200"),
    ("We get $x = \\frac{6}{4}$.", "1.5"),
    ("We get $x^2+1 = M$ so $y = 1 + x^2$.", "x^2+1"),
    ("The point is $\\left(3, \\frac{1}{2}\\right)$", "(3,1/2)"),
    ("She comes on Monday, as M says", "\\text{Monday}"),
    ("so \\boxed{12.0}", "12"),
    ("$N = 2^3$ and so on", "8"),
    ("$K = 3\\sqrt{2}$", "\\sqrt{18}"),
    ("so she baked $3 \\cdot 3 = \\boxed{P}$ pies", "9"),
]
HIDE = [
    ("So M = N + K.", "12"),
    ("There are 120 of them and 112 others, 12.5 each", "12"),
    ("Multiply 41 by 36 to get M.", "1476"),
    ("Mondays are nice", "\\text{Monday}"),
    ("$x = M$", "x^2+1"),
]


@pytest.mark.parametrize(("text", "answer"), TELL)
def test_an_answer_is_found_in_any_form(text, answer, pool):
    assert leak(text, answer, pool) is not None


@pytest.mark.parametrize(("text", "answer"), HIDE)
def test_what_is_no_answer_is_none(text, answer, pool):
    assert leak(text, answer, pool) is None


def problem(number: int, answer: str = "144", reference: str = "12 * 12 = 144. So \\boxed{144} it is.") -> Problem:
    return Problem(problem_id=f"p/{number}", problem="q", expected_answer=answer, dataset="d", split="train",
                   reference_solution=reference)  # fmt: skip


def test_the_published_rule_selects_and_says_why(pool):
    texts = {
        0: "12 * 12 = 144, so it is found.",  # tells
        1: "M",  # too short
        2: "Multiply 12 by 12 to get M, 1234 is no matter",
        3: "Multiply M by M, which gives N, once.",  # no digits
        4: "Multiply M by M, which gives N, now.",  # as few, and shorter
    }
    ((found, mask),) = select_masks([problem(0)], {"p/0": texts}, pool, MaskOptions())
    assert (mask.kind, mask.sample_index, found.masked_reference_solution) == ("selected", 4, texts[4])
    whys = {each.sample_index: (each.leak, each.is_of_length) for each in mask.candidates}
    assert whys == {0: ("144", True), 1: (None, False), 2: (None, True), 3: (None, True), 4: (None, True)}


def test_without_a_good_candidate_there_is_no_mask_unless_the_published_fall_backs_are_asked_for(pool):
    texts = {"p/0": {0: "It is 144, I say; that it is.", 1: "It is 144 = 144, that it is."}, "p/1": {0: "M"}}
    problems = [problem(0), problem(1), problem(2)]
    plain = select_masks(problems, texts, pool, MaskOptions())
    assert [mask.kind for _, mask in plain] == ["none"] * 3
    assert all(each.masked_reference_solution is None for each, _ in plain)
    published = select_masks(problems, texts, pool, MaskOptions(fallback="published"))
    assert [(mask.kind, mask.sample_index) for _, mask in published] == [
        ("leaking", 0),
        ("reference", None),
        ("reference", None),
    ]
    assert kinds_of(mask for _, mask in published)["leaking"] == 1


def stub_masks(reference: str, question: str, answer: str, draw: random.Random) -> str:
    """A masking that replaces numbers which the question does not have by letters, and sometimes forgets one."""
    letters = iter("MNPQRSTUVWXYZ" * 40)
    asked = set(re.findall(r"\d+", question))

    def mask(found: re.Match[str]) -> str:
        return found[0] if found[0] in asked or draw.random() < 0.08 else next(letters)

    text = re.sub(r"\d+", mask, reference)
    if draw.random() < 0.2:
        text += f" The answer is {answer}."
    return text if draw.random() < 0.9 else text[: len(text) // 3]


@pytest.mark.slow
def test_no_selected_mask_of_math_tells_the_answer(dev_data, pool):
    assert_none_tells(every(60, dev_data), pool)


@pytest.mark.trial
@pytest.mark.parametrize("first", range(0, 60, 5))
def test_no_selected_mask_of_a_twelfth_of_math_tells_the_answer(first, dev_data, pool):
    for start in range(first, first + 5):
        assert_none_tells(every(60, dev_data, start), pool)


def every(step: int, dev_data: Path, start: int = 0) -> list[Problem]:
    """Every so-manieth problem of MATH's train split."""
    with gzip.open(dev_data / "math" / "train.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in stream][start::step]
    return [Problem(problem_id=row["id"], problem=row["problem"], expected_answer=row["expected_answer"], dataset="math",
                    split="train", reference_solution=row["reference_solution"]) for row in rows]  # fmt: skip


def assert_none_tells(problems: list[Problem], pool: GradingPool) -> None:
    draw = random.Random(problems[0].problem_id)
    texts = {
        one.problem_id: {
            n: stub_masks(str(one.reference_solution), one.problem, str(one.expected_answer), draw) for n in range(8)
        }
        for one in problems
    }
    found = select_masks(problems, texts, pool, MaskOptions())
    counts = kinds_of(mask for _, mask in found)
    print(counts, flush=True)
    assert counts["leaking"] == counts["reference"] == 0 < counts["candidates that tell the answer"]
    assert counts["selected"] > len(problems) / 10
    for one, mask in found:
        if one.masked_reference_solution is None:
            continue
        numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", one.masked_reference_solution)
        formulas = [
            side for each in re.findall(r"\$([^$]+)\$", one.masked_reference_solution) for side in each.split("=")
        ]
        telling = [
            each for each in [*numbers, *formulas] if len(each) < 60 and grade(each, one.expected_answer).is_correct
        ]
        assert telling == [], (one.problem_id, one.expected_answer)
        assert str(one.expected_answer) not in re.findall(r"[\w.]+", one.masked_reference_solution)
        assert mask.sample_index in texts[one.problem_id]
