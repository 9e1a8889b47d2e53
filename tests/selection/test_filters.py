"""What becomes of single solutions: tables of cases, and what must stay cheap."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.selection import filters
from mathmill.selection.arithmetic import wrong_arithmetic
from mathmill.selection.options import Filters
from mathmill.selection.rows import SourceRow
from mathmill.selection.sift import judge_of

CASES = Path(__file__).parents[1] / "cases" / "selection"
TABLE = yaml.safe_load((CASES / "filters.yaml").read_text())
ARITHMETIC = yaml.safe_load((CASES / "arithmetic.yaml").read_text())
LETTERS = [
    *filters.TAGS,
    "\\boxed{",
    "\\boxed{2}",
    "\\fbox{3}",
    "}",
    "{",
    "\n",
    "\\]",
    "$$",
    "\\end{align*}",
    "a ",
    "\\{",
]
PIECES = st.lists(st.sampled_from(LETTERS)).map("".join)
BLOCK = "<llm-code>\n1\n</llm-code>\n<llm-code-output>\n1\n</llm-code-output>\n"


def judged(text: str, **options) -> tuple[str | None, str]:
    row = SourceRow(question="q", generated_solution=text, is_correct=True)
    return judge_of(Filters(**options))(row, "q", text)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case["name"])
def test_the_table_of_filters_holds(case):
    row = SourceRow(question="q", generated_solution=case["solution"], **{"is_correct": True, **case.get("row", {})})
    reason, text = judge_of(Filters(**case.get("options", {})))(row, "q", case["solution"])
    assert (reason or "kept") == case["then"]
    if reason is None:
        assert text == case.get("text", case["solution"])


@given(PIECES)
def test_what_was_cut_is_not_cut_again(text):
    once = judged(text, drop_multi_boxed=False, require_box=False, drop_broken_code=False)[1]
    assert judged(once, drop_multi_boxed=False, require_box=False, drop_broken_code=False)[1] == once


@given(PIECES)
def test_a_solution_that_is_kept_has_one_box_and_whole_blocks(text):
    reason, kept = judged(text)
    if reason is None:
        assert len(filters.box_spans(kept)) == 1
        assert not filters.is_broken(kept)


@given(PIECES)
def test_the_short_ways_judge_tags_as_the_pattern_does(text):
    found = filters._TAG.findall(text)
    assert filters.is_broken(text) == (found != list(filters.TAGS) * (len(found) // 4) or len(found) % 4 != 0)


@pytest.mark.parametrize("text", ARITHMETIC["right"])
def test_arithmetic_that_holds_or_cannot_be_told_is_left_alone(text):
    assert wrong_arithmetic(text) is None


@pytest.mark.parametrize(("text", "found"), ARITHMETIC["wrong"].items())
def test_wrong_arithmetic_is_found(text, found):
    assert wrong_arithmetic(text) == found


@pytest.mark.parametrize(
    "text", ["1" * 100_000 + "=1", "1+" * 50_000 + "=1", "(" * 50_000 + "=2", "9^64^64=1", "=" * 50_000]
)
def test_arithmetic_of_any_size_costs_little(text):
    begun = time.process_time()
    wrong_arithmetic(text)
    assert time.process_time() - begun < 2


@given(st.text(alphabet="0123456789+-*/()=., x$\\^%", max_size=60))
def test_no_text_breaks_the_reader_of_arithmetic(text):
    wrong_arithmetic(text)


def test_tokens_are_counted_by_the_tokenizer_that_is_named(repo):
    text = "Add the two amounts. \\boxed{4}"
    folder = str(repo / "models" / "words")
    assert judged(text, max_solution_tokens=3, tokenizer=folder)[0] == "long_solution"
    assert judged(text, max_solution_tokens=300, tokenizer=folder)[0] is None
    assert judged(text, max_problem_tokens=1, tokenizer=folder)[0] is None
    with pytest.raises(UserError, match="need --tokenizer"):
        Filters(max_solution_tokens=3)
    with pytest.raises(UserError, match="no tokenizer"):
        judged(text, max_solution_tokens=3, tokenizer="/nowhere")


PLAIN = [
    BLOCK,
    "\\boxed{2}",
    "So $\\boxed{12}$.",
    "é",
    "|",
    "\0",
    "boxed",
    "llm-code",
    "\\text{a}",
    "[1]",
    " ",
    "\nx",
    "<llm-codes>",
]


@given(st.lists(st.sampled_from([*LETTERS, *PLAIN]), max_size=7).map("".join))
def test_a_usual_solution_is_told_as_the_judge_tells_it(text):
    assert_told_alike(text)


def test_the_table_of_filters_is_told_as_the_judge_tells_it():
    for case in TABLE:
        assert_told_alike(case["solution"])
        for head in PLAIN:
            for tail in PLAIN:
                assert_told_alike(f"{head}{case['solution']}{tail}")


def assert_told_alike(text: str) -> None:
    cut, whole = filters.usual_text(text, True), filters.usual_text(text, False)
    if cut is not None:
        assert judged(text, drop_useless_code=True) == (None, cut)
    if whole is not None:
        assert judged(text, drop_useless_code=True, trim=False) == (None, whole)


@pytest.mark.parametrize(("text", "after"), [
    ("So $\\boxed{12}$.", ""), (f"First\n{BLOCK}So \\boxed{{3.5}}", "\nand more"), ("é \\boxed{x+1}.", "\nBye"),
])  # fmt: skip
def test_what_is_usual_is_told_as_usual(text, after):
    assert filters.usual_text(text + after, True) == text and filters.usual_text(text + after, False) == text + after
