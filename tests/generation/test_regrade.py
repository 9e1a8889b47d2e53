"""Verdicts anew, beside the shards."""

import hashlib
import json

import msgspec
import pytest

from mathmill.errors import UserError
from mathmill.generation.regrade import regrade
from mathmill.generation.shards import cut, left
from mathmill.grading import GradingPool
from mathmill.records import lines_of
from mathmill.stages.grade import GradeOptions, grade_run
from tests.generation.making import problems_like, run_with, solution_of


def answer_of(number: int, sample_index: int) -> str | None:
    """The first sample of a problem is right, the second has no answer or a wrong one."""
    if sample_index == 0:
        return f"{2 * number}.0"
    return None if number % 2 else "-50"


@pytest.fixture
def pool():
    pool = GradingPool(workers=1)
    yield pool
    pool.close()


def finished_run(folder, num_samples=2):
    """A run whose shards are published; every verdict in them says correct."""
    problems = problems_like(8)
    run, made = run_with(folder, problems, num_samples=num_samples)
    for shard in left(made, made.load()):
        rows = []
        for problem_id, sample_index in shard.keys(problems):
            number = int(problem_id.rpartition("/")[2])
            row = solution_of(problems[number], sample_index)
            rows.append(msgspec.structs.replace(row, predicted_answer=answer_of(number, sample_index)))
        (made.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows))
    return run, made


def content(made):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.folder.glob("p*.jsonl")}


def test_verdicts_are_keyed_and_lie_beside_shards_that_stay_as_they_are(pool, tmp_path):
    _, made = finished_run(tmp_path)
    before = content(made)
    regrading = regrade(made, "default", pool)

    assert content(made) == before
    for shard in cut(made.load(), made.extents()):
        lines = (made.folder / "verdicts" / "default" / f"{shard.name}.jsonl").read_text().splitlines()
        keys = [(row["problem_id"], row["sample_index"]) for row in map(json.loads, lines)]
        assert keys == shard.keys(problems_like(8))
    assert regrading.tally.rules == {(True, "number"): 8, (False, "number"): 4, (False, "no-answer"): 4}
    assert regrading.changed == {False: 8}


def test_a_second_time_grades_only_what_is_new_and_counts_all(pool, tmp_path, monkeypatch):
    _, made = finished_run(tmp_path)
    first = regrade(made, "default", pool)
    verdicts = made.folder / "verdicts" / "default"
    missing = sorted(verdicts.glob("p*.jsonl"))[1]
    missing.unlink()
    kept = {path: path.stat().st_mtime_ns for path in verdicts.glob("p*.jsonl")}
    again = regrade(made, "default", pool)

    assert again.tally == first.tally and missing.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_policies_lie_side_by_side_and_one_name_has_one_policy(pool, tmp_path):
    _, made = finished_run(tmp_path)
    regrade(made, "loose", GradingPool(policy="omi1"))
    with pytest.raises(UserError, match="was begun with policy omi1; use another --name, or that policy"):
        regrade(made, "loose", pool)


def test_the_stage_prints_counts_and_refuses_names_that_are_no_folder(tmp_path, capsys):
    run, _ = finished_run(tmp_path)
    grade_run(GradeOptions(run=str(run.folder)))
    printed = capsys.readouterr().out
    assert "could not tell            0" in printed and "other than in the shards: 0 correct, 8 wrong" in printed
    with pytest.raises(UserError, match=r"--name '\.\./out'"):
        grade_run(GradeOptions(run=str(run.folder), name="../out"))
    with pytest.raises(UserError, match="no grading policy 'x'"):
        grade_run(GradeOptions(run=str(run.folder), policy="x"))


def test_verdicts_that_somebody_cut_short_are_named(pool, tmp_path):
    _, made = finished_run(tmp_path)
    regrade(made, "default", pool)
    path = min((made.folder / "verdicts" / "default").glob("p*.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))

    with pytest.raises(UserError, match=rf"{path.name}: its rows are not those"):
        regrade(made, "default", pool)
