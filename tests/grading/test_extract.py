"""The answer in a solution's text."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.grading import extract_answer
from mathmill.grading.extract import last_box

CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "cases" / "extract.jsonl").read_text().splitlines()]
LETTERS = st.text(st.characters(blacklist_characters="{}\\", blacklist_categories=("Cs",)), max_size=20)
BALANCED = st.recursive(
    LETTERS | st.sampled_from([r"\{", r"\}", r"\\", r"\frac", r"\%"]),
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda text: "{" + text + "}"),
    max_leaves=8,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_the_answer_is_what_the_table_says(case):
    assert extract_answer(case["text"], case.get("last_number", False)) == case["answer"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_a_box_alone_is_read_the_same_and_nothing_else_is(case):
    assert last_box(case["text"]) == (case["answer"] if "\\boxed" in case["text"] or "\\fbox" in case["text"] else None)


@given(st.text(max_size=200).filter(lambda text: not text.endswith("\\")), BALANCED)
def test_whatever_is_balanced_in_the_last_box_comes_back(before, content):
    assert extract_answer(before + " \\boxed{" + content + "} so there") == (content.strip() or None)


@given(st.text("\\{}boxed f$1", max_size=80))
def test_no_text_makes_it_fail(text):
    answer = extract_answer(text, last_number=True)
    assert answer is None or (answer and answer in text)


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "the answer is ", "answer", "the answer is $", "#### ", "1,", "$", " ", "*"]
)
def test_a_long_text_takes_no_time(piece):
    began = time.process_time()
    extract_answer(piece * (500_000 // len(piece)), last_number=True)
    assert time.process_time() - began < 5
