"""Benchmarks as yaml: those that are shipped, and one's own without code."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.problems.benchmark import known_benchmarks, load_benchmark, share_of
from mathmill.problems.load import load_problems
from mathmill.problems.published_rows import compiled, read_published_rows

REPO = Path(__file__).parents[2]
MINE = """
title: Mine
problems: mine:test
size: 3
licence: mine
source:
  url: https://example.org/files/items.json
  fields:
    problem: ["{{ question }}", "{{ body }} {{ ask }}"]
    expected_answer: "{{ answer }}"
    subject: "{{ kind }}"
    level: "{{ grade | int }}"
reference:
  paper:
    source: a paper
    results: {greedy: {Their-7B: 61.2}, majority@50: {Their-7B: 2/3}}
"""


def test_every_shipped_benchmark_can_be_read_and_its_templates_too():
    for name in known_benchmarks():
        loaded, benchmark = load_benchmark(name)
        assert loaded == name
        assert benchmark.dataset == name
        if benchmark.source is not None:
            compiled(benchmark.source.fields, benchmark.title)


def test_published_results_are_those_of_the_papers():
    gsm8k, math = load_benchmark("gsm8k")[1], load_benchmark("math")[1]
    first = gsm8k.reference["openmathinstruct-1"].results
    assert (first["greedy"]["OpenMath-CodeLlama-70B"], first["majority@50"]["OpenMath-CodeLlama-70B"]) == (84.6, 90.8)
    assert math.reference["openmathinstruct-1"].results["greedy"]["OpenMath-CodeLlama-70B"] == 50.7
    second = math.reference["openmathinstruct-2"]
    assert (second.verdict, second.results["majority@256"]["OpenMath2-Llama3.1-8B"]) == ("judge", 76.1)
    amc = load_benchmark("amc23")[1].reference["openmathinstruct-2"].results
    assert share_of(amc["greedy"]["OpenMath2-Llama3.1-8B"], "") == 0.4


def test_a_benchmark_of_ones_own_needs_a_yaml_and_no_code(workdir):
    Path("mine.yaml").write_text(MINE)
    rows = {
        "a": {"question": "1 + 1?", "answer": 2.0, "kind": "sums", "grade": 3.5},
        "b": {"body": "Two apples.", "ask": "And {{one}} more?", "answer": "3", "kind": "sums"},
        "c": {"question": "x?", "answer": "\\frac{1}{2}", "kind": ""},
    }
    Path("items.json").write_text(json.dumps(rows))
    done = subprocess.run(
        [sys.executable, REPO / "pipeline" / "prepare_data.py", "mine.yaml", "--source", "."],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    problems = load_problems("mine:test")
    assert [(each.problem_id, each.problem, each.expected_answer) for each in problems] == [
        ("mine/test/0", "1 + 1?", "2"),
        ("mine/test/1", "Two apples. And {{one}} more?", "3"),
        ("mine/test/2", "x?", "\\frac{1}{2}"),
    ]
    assert [(each.subject, each.level, each.answer_type) for each in problems] == [
        ("sums", 3, "integer"),
        ("sums", None, "integer"),
        (None, None, "fraction"),
    ]


@pytest.mark.parametrize("form", ["lines", "gzip", "list"])
def test_published_rows_are_lines_a_list_or_an_object(form, workdir):
    Path("mine.yaml").write_text(MINE)
    rows = [{"question": f"{n}?", "answer": n} for n in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if form == "lines":
        Path("test.jsonl").write_text(lines)
    elif form == "gzip":
        Path("test.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    else:
        Path("test.json").write_text(json.dumps(rows))

    problems = read_published_rows(load_benchmark("mine.yaml")[1], Path("."))

    assert [each.expected_answer for each in problems] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINE.replace("title:", "titel:"), "titel"),
        (MINE.replace("2/3", "2 of 3"), "2 of 3"),
        (MINE.replace("61.2", "612"), "between 0 and 100"),
        (MINE.replace("size: 3", "size: many"), "size"),
        ("a: [", "no yaml"),
    ],
)
def test_a_mistake_in_a_benchmarks_yaml_is_told_with_its_place(text, said, workdir):
    Path("mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml") as told:
        load_benchmark("mine.yaml")
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"question": "1?"}', "expected_answer is empty"),
        ('{"answer": 1}', "problem is empty"),
        ('{"question": "1?", "answer": 1, "grade": "x"}', None),
        ("[1]", "not a JSON object"),
        ("{", "no JSON"),
    ],
)
def test_a_row_that_does_not_fit_is_told_by_its_line(row, said, workdir):
    Path("mine.yaml").write_text(MINE)
    Path("test.jsonl").write_text('{"question": "0?", "answer": 0}\n' + row + "\n")
    if said is None:
        assert len(read_published_rows(load_benchmark("mine.yaml")[1], Path("."))) == 2
        return
    with pytest.raises(UserError, match=said) as told:
        read_published_rows(load_benchmark("mine.yaml")[1], Path("."))
    assert "test.jsonl:2" in str(told.value)


def test_an_unknown_benchmark_is_told_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        load_benchmark("gsm8q")


@pytest.mark.slow
def test_the_published_files_become_as_many_problems_as_the_yaml_says(dev_data):
    seen = 0
    for name in known_benchmarks():
        benchmark = load_benchmark(name)[1]
        if benchmark.source is not None and (dev_data / name).is_dir():
            problems = read_published_rows(benchmark, dev_data / name)
            assert len(problems) == benchmark.size, name
            seen += 1
    assert seen >= 13
