"""Problems read by name or from a user's file."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.problems import load_problems
from mathmill.problems.load import number_text
from mathmill.records import Problem

CASES = Path(__file__).parent / "cases"


def cases(name: str) -> list:
    return yaml.safe_load((CASES / f"{name}.yaml").read_text())


def lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def refusal(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# A user's own file


def test_a_file_needs_no_more_than_problems(tmp_path):
    path = lines(tmp_path / "mine.jsonl", {"problem": "What is 1 + 1?", "note": "ignored"}, {"problem": "Prove it."})
    problems = load_problems(str(path))
    assert [problem.problem for problem in problems] == ["What is 1 + 1?", "Prove it."]
    assert problems[0].problem_id.startswith("sha-") and problems[0].problem_id != problems[1].problem_id
    assert {(each.expected_answer, each.dataset, each.split) for each in problems} == {(None, "mine", "")}


def test_a_gzipped_file_is_read_and_keeps_all_known_fields(tmp_path):
    row = Problem(
        problem_id="a", problem="?", expected_answer="2", dataset="d", split="s", subject="Algebra", level=3,
        answer_type="integer", reference_solution="1 + 1",
    )  # fmt: skip
    path = lines(tmp_path / "mine.jsonl.gz", {field: getattr(row, field) for field in row.__struct_fields__})
    assert load_problems(str(path)) == [row]


def test_question_stands_for_problem(tmp_path):
    assert load_problems(str(lines(tmp_path / "a.jsonl", {"question": "Why?"})))[0].problem == "Why?"


@pytest.mark.parametrize("written, text", [each for each in cases("numbers_as_text") if each[1]])
def test_a_number_as_answer_becomes_text(tmp_path, written, text):
    if "," not in written:
        path = lines(tmp_path / "a.jsonl", f'{{"problem": "?", "expected_answer": {written}}}')
        assert load_problems(str(path))[0].expected_answer == text


@pytest.mark.parametrize("written, text", cases("numbers_as_text"))
def test_numbers_are_written_as_people_do(written, text):
    assert number_text(written) == text


@given(st.integers())
def test_every_integer_stays_what_it_is(number):
    assert number_text(f"{number}.0") == number_text(f"{number:,}") == number_text(str(number)) == str(number)


@pytest.mark.parametrize(
    "row, complaint",
    [
        ('{"problem": "cut', "not a problem"),
        ("[1]", "not a problem"),
        ({"expected_answer": "3"}, "no 'problem' in it"),
        ({"problem": "  "}, "no 'problem' in it"),
        ({"problem": 3}, "not a problem"),
        ({"problem": "a", "question": "b"}, "'problem' and 'question' differ"),
        ({"problem": "a", "answer": "long story #### 3"}, "rename the field to 'expected_answer'"),
        ({"problem": "a", "expected_answer": True}, "write a text or a number"),
        ({"problem": "a", "expected_answer": [1]}, "write a text or a number"),
        ({"problem": "a", "level": "hard"}, "not a problem"),
    ],
)
def test_a_bad_row_is_refused_by_its_line(tmp_path, row, complaint):
    path = lines(tmp_path / "bad.jsonl", {"problem": "fine"}, row)
    message = refusal(load_problems, str(path))
    assert message.startswith(f"{path}:2: ") and complaint in message


def test_equal_ids_are_refused_with_both_lines(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"problem": "x"}, {"problem": "y"}, {"problem": "x"})
    message = refusal(load_problems, str(path))
    assert f"{path}:3" in message and "line 1" in message


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    assert "no problems in it" in refusal(load_problems, str(lines(tmp_path / "a.jsonl")))
    assert "no file" in refusal(load_problems, str(tmp_path / "nowhere.jsonl"))


def test_a_damaged_gzipped_file_is_refused(tmp_path):
    whole = lines(tmp_path / "a.jsonl.gz", *({"problem": f"number {n * n}"} for n in range(500))).read_bytes()
    for damaged in (whole[:300], whole[:10] + b"\xff" * 20 + whole[30:], b"no gzip"):
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        assert "cannot be read" in refusal(load_problems, str(tmp_path / "a.jsonl.gz"))


# By name


def test_a_prepared_benchmark_is_found_by_name(tmp_path, monkeypatch):
    lines(tmp_path / "data" / "mine" / "test.jsonl", {"problem": "x"})
    monkeypatch.delenv("MATHMILL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert [(each.dataset, each.split) for each in load_problems("mine:test")] == [("mine", "test")]
    monkeypatch.setenv("MATHMILL_DATA", str(tmp_path / "elsewhere"))
    assert "mine" not in refusal(load_problems, "other:test")


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_command(tmp_path, monkeypatch):
    lines(tmp_path / "mine" / "test.jsonl", {"problem": "x"})
    lines(tmp_path / "mine" / "train.jsonl", {"problem": "x"})
    monkeypatch.setenv("MATHMILL_DATA", str(tmp_path))
    message = refusal(load_problems, "gsm9k:test")
    assert "mine:test" in message and "pipeline/prepare_data.py gsm8k" in message
    assert "mine:test, mine:train" in refusal(load_problems, "mine")
    assert "mine:test" in refusal(load_problems, "mine:tset")
