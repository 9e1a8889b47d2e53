"""The project's own word problems: the same again, true to their code, and split by numbers."""

import ast
import contextlib
import io
import re
from itertools import islice

import pytest

from mathmill.errors import UserError
from mathmill.paths import shipped
from mathmill.records import Problem, lines_of, read_records
from mathmill.words import KINDS, LARGEST, SMALLEST, WordsOptions, generate, split_of, stream, write

BUNDLED = shipped("problems") / "words" / "test.jsonl"
KIND_OF = {kind.name: kind for kind in KINDS}


def numbers_of(problem: Problem) -> list[int]:
    """The numbers in a problem's text, which writes no other."""
    return [int(digits) for digits in re.findall(r"\d+", problem.problem)]


def split_by_text(problem: Problem) -> str:
    """The split that the numbers in the text say, in whatever order they stand there."""
    return split_of(str(problem.subject), tuple(numbers_of(problem)))


def run_as_a_session(code: str) -> str:
    """What Python shows for a block: the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(tree, "block", "exec"), names)
    return repr(eval(compile(ast.Expression(last.value), "block", "eval"), names))


@pytest.fixture(scope="module")
def training() -> list[Problem]:
    return list(islice(stream("train", seed=3), 6000))


def test_the_bundled_benchmark_is_what_the_command_makes(tmp_path):
    write(WordsOptions(output=tmp_path / "test.jsonl", split="test", count=200, seed=0))
    assert (tmp_path / "test.jsonl").read_bytes() == BUNDLED.read_bytes()


def test_the_bundled_benchmark_has_200_distinct_problems_of_every_kind_with_running_ids():
    problems = list(read_records(BUNDLED, Problem))
    assert len({problem.problem for problem in problems}) == len(problems) == 200
    assert [problem.problem_id for problem in problems] == [f"words/test/{number}" for number in range(200)]
    assert {problem.subject for problem in problems} == set(KIND_OF)
    assert {(problem.dataset, problem.split) for problem in problems} == {("words", "test")}


def test_no_numbers_of_a_test_problem_are_in_the_training_split(training):
    assert {split_by_text(problem) for problem in read_records(BUNDLED, Problem)} == {"test"}
    assert {split_by_text(problem) for problem in training} == {"train"}


def test_the_order_of_the_numbers_does_not_change_the_split():
    assert all(split_of("sum", (a, b)) == split_of("sum", (b, a)) for a in range(2, 100) for b in range(2, 100))


def test_about_a_tenth_of_the_numbers_is_reserved_for_the_test_in_every_kind():
    for kind in KIND_OF:
        pairs = [(a, b) for a in range(2, 100) for b in range(a, 100)]
        assert 0.08 < sum(split_of(kind, pair) == "test" for pair in pairs) / len(pairs) < 0.12


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    assert lines_of(generate("train", 50, seed=1)) == lines_of(generate("train", 50, seed=1))
    assert lines_of(generate("train", 50, seed=1)) != lines_of(generate("train", 50, seed=2))


def test_fewer_problems_are_the_beginning_of_more():
    assert generate("test", 20, seed=4) == generate("test", 60, seed=4)[:20]


def test_the_code_of_a_solution_gives_its_output_its_answer_and_the_boxed_number(training):
    form = re.compile(
        r"[A-Z][^\n]*\.\n<llm-code>\n(?P<code>.*)\n</llm-code>\n<llm-code-output>\n(?P<output>.*)\n</llm-code-output>\n"
        r"[^\n]*\\boxed\{(?P<boxed>[^{}]*)\}[^\n]*\.",
        re.DOTALL,
    )
    for problem in training[:3000]:
        found = form.fullmatch(str(problem.reference_solution))
        assert found, problem.reference_solution
        assert run_as_a_session(found["code"]) == found["output"] == found["boxed"] == problem.expected_answer


def test_every_number_of_a_problem_is_from_2_to_99_and_as_many_as_its_kind_has_variables(training):
    for problem in training:
        numbers = numbers_of(problem)
        assert len(numbers) == len(KIND_OF[str(problem.subject)].variables)
        assert all(SMALLEST <= number <= LARGEST for number in numbers)


def test_answers_are_positive_or_zero_numbers(training):
    assert all(float(str(problem.expected_answer)) >= 0 for problem in training)


def test_every_wording_names_every_variable_of_its_kind():
    for kind in KINDS:
        for wording in kind.wordings:
            assert set(kind.variables) == set(re.findall(r"\{(\w+)\}", wording)) - {"name", "other", "items"}


def test_a_closing_speaks_only_of_people_and_things_in_the_problem(training):
    for problem in training:
        closing = str(problem.reference_solution).rsplit("\n", 1)[1]
        for word in re.findall(r"[A-Z][a-z]+", closing)[:1]:
            named = word in problem.problem
            assert named or word in {"There", "So", "The", "That", "Each", "It", "Once", "Together"}


def test_both_ways_to_write_code_appear(training):
    with_variables = sum(" = " in str(problem.reference_solution) for problem in training)
    assert 0.4 < with_variables / len(training) < 0.6


@pytest.mark.parametrize("count", [0, -1, 10**9])
def test_a_count_that_cannot_be_made_is_refused(tmp_path, count):
    with pytest.raises(UserError, match="--count"):
        write(WordsOptions(output=tmp_path / "test.jsonl", count=count))
    assert not (tmp_path / "test.jsonl").exists()
