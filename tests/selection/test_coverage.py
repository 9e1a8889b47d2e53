"""Coverage: what a strategy covers, what several do together, and the law of its curve."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.generation.shards import left
from mathmill.records import lines_of
from mathmill.run import Run
from mathmill.selection.coverage import CoverageWork, missed, report_coverage, table_of
from tests.generation.making import problems_like, run_with, solution_of


def add_set(run: Run, name: str, right: set[int]) -> None:
    """A finished set of two samples a problem, both of them right for these of eight problems."""
    problems = problems_like(8)
    _, made = run_with(run.folder.parents[1], problems, name=name)
    for shard in left(made, made.load()):
        rows = [
            msgspec.structs.replace(solution_of(problems[number], sample), is_correct=number in right, generation=name)
            for problem_id, sample in shard.keys(problems)
            for number in [int(problem_id.rpartition("/")[2])]
        ]
        (made.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows))


@pytest.mark.slow
def test_a_union_covers_what_any_of_its_strategies_does(tmp_path):
    run = Run(tmp_path / "runs" / "toy")
    for name, right in {"one": {0, 1}, "two": {1, 2, 3}, "three": {7}}.items():
        add_set(run, name, right)
    strategies = [("made", name.title(), [name]) for name in ("one", "two", "three")]
    work = CoverageWork(name="c", strategies=strategies, unions={"One + Two": ["One", "Two"], "Never": ["One", "Nine"]})
    lines = report_coverage(work, run)
    found = [(one.strategy, one.covered, one.samples_per_problem, one.unique_correct) for one in lines]
    assert found == [
        ("One", 2, 2, 2), ("Two", 3, 2, 3), ("One + Two", 4, 4, 5), ("Three", 1, 2, 1), ("total", 5, 6, 6),
    ]  # fmt: skip
    assert "| made | One + Two | 4 | 5 | 4 of 8 | 50.0% |" in table_of(lines)
    assert (run.folder / "reports" / "c.png").read_bytes().startswith(b"\x89PNG")


@given(st.integers(1, 8), st.data())
def test_the_curve_is_the_mean_over_all_ways_to_draw(samples, data):
    correct, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
    assert missed(samples, correct, k) == pytest.approx(sum(not any(draw) for draw in draws) / math.comb(samples, k))
