"""Shards: every key once, published whole, whatever was torn, doubled or garbled before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.generation.parts import journaled, publish
from mathmill.generation.progress import set_progress
from mathmill.generation.sets import SetFolder, shard_shape
from mathmill.generation.shards import Shard, cut, published, shard_of
from mathmill.records import Solution, line_of, lines_of, read_records
from tests.generation.making import problems_like, run_with, set_of, solution_of


@given(
    num_problems=st.integers(1, 40),
    extents=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    per_shard=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_shards_hold_every_row_once_however_the_samples_grew(num_problems, extents, per_shard):
    problems = problems_like(num_problems)
    sample_set = set_of(problems, problems_per_shard=per_shard[0], samples_per_shard=per_shard[1])
    keys = [key for shard in cut(sample_set, sorted(set(extents))) for key in shard.keys(problems)]
    assert len(keys) == len(set(keys)) == num_problems * max(extents)


@given(num_problems=st.integers(1, 9000), num_samples=st.integers(1, 1000), num_jobs=st.integers(1, 1000))
def test_shards_are_small_enough_for_every_task_and_at_most_512_rows(num_problems, num_samples, num_jobs):
    problems, samples = shard_shape(num_problems, num_samples, num_jobs)
    assert 1 <= problems * samples <= 512
    shards = -(-num_problems // problems) * -(-num_samples // samples)
    assert shards >= min(num_jobs, num_problems * num_samples)


@given(
    before=st.sets(st.integers(1, 40), min_size=1, max_size=3),
    more=st.integers(41, 80),
)
def test_more_samples_only_add_shards(before, more):
    sample_set = set_of(problems_like(10))
    old = cut(sample_set, sorted(before))
    assert cut(sample_set, [*sorted(before), more])[: len(old)] == old


@given(st.tuples(*[st.integers(0, 10**6)] * 4))
def test_a_shards_name_says_what_it_holds(numbers):
    shard = Shard(*numbers)
    assert shard_of(shard.name) == shard == shard_of(f"{shard.name}.0001.worker.jsonl")


def test_fewer_samples_than_there_were_ask_for_nothing_new(tmp_path):
    _, folder = run_with(tmp_path, problems_like(4), num_samples=4)
    assert folder.extents_with(2) == folder.extents() == [4]
    assert folder.extents_with(6) == [4, 6]


def test_a_node_whose_view_lags_cannot_cut_a_block_anew(tmp_path, monkeypatch):
    _, folder = run_with(tmp_path, problems_like(4), num_samples=4)
    stale = folder.extents()
    folder.grow(256)
    now, looks = SetFolder.extents, iter([stale, stale, stale, stale])
    monkeypatch.setattr(SetFolder, "extents", lambda self: next(looks, None) or now(self))
    folder.grow(64)  # asked for on a node that has not seen the 256 yet
    assert now(folder) == [4, 256]


def test_files_that_look_like_numbers_of_samples_are_told_from_them(tmp_path):
    _, folder = run_with(tmp_path, problems_like(4), num_samples=4)
    (folder.folder / "samples.001.orig").write_text("8")
    assert folder.extents() == [4]
    (folder.folder / "samples.000004").touch()  # as an older mathmill asked for four
    with pytest.raises(UserError, match="was begun by an older mathmill; use another run name"):
        folder.extents()
    (folder.folder / "samples.000004").unlink()
    (folder.folder / "samples.001").write_text("")
    with pytest.raises(UserError, match=r"samples.001: does not hold a number of samples"):
        folder.extents()


def test_a_set_whose_problems_were_changed_is_refused(tmp_path):
    _, folder = run_with(tmp_path, problems_like(4))
    folder.problems.write_bytes(lines_of(problems_like(3)))
    with pytest.raises(UserError, match=r"problems.jsonl is not what .*set.yaml was made with"):
        folder.load_problems()


@pytest.fixture
def made(tmp_path):
    problems = problems_like(4)
    _, folder = run_with(tmp_path, problems)
    return folder, problems, Shard(0, 3, 0, 1)


def rows_for(problems, text="done"):
    return [solution_of(problem, sample, text) for problem in problems for sample in (0, 1)]


def test_a_shard_is_published_only_when_every_row_is_settled(made):
    folder, problems, shard = made
    (folder.parts / f"{shard.name}.0001.a.jsonl").write_bytes(lines_of(rows_for(problems)[:-1]))
    assert not publish(folder, shard, problems)
    assert not published(folder)
    (folder.quarantine / f"{shard.name}.0001.a.jsonl").write_bytes(
        b'{"problem_id":"toy/test/3","sample_index":1,"reason":"too long"}\n'
    )
    assert publish(folder, shard, problems)
    assert published(folder) == {shard.name}
    assert len(list(read_records(folder.folder / f"{shard.name}.jsonl", Solution))) == 7
    assert set_progress(folder).num_quarantined == 1
    assert not list(folder.parts.iterdir())


def test_of_two_claimants_of_one_shard_the_lowest_claim_wins_each_row(made):
    folder, problems, shard = made
    first, second = rows_for(problems, "first"), rows_for(problems, "second")
    (folder.parts / f"{shard.name}.0002.b.jsonl").write_bytes(lines_of(second))
    (folder.parts / f"{shard.name}.0001.a.jsonl").write_bytes(lines_of(first[:3]))
    assert publish(folder, shard, problems)
    texts = [row.generation for row in read_records(folder.folder / f"{shard.name}.jsonl", Solution)]
    assert texts == ["first"] * 3 + ["second"] * 5


def test_a_published_shard_is_never_replaced(made):
    folder, problems, shard = made
    (folder.parts / f"{shard.name}.0001.a.jsonl").write_bytes(lines_of(rows_for(problems, "first")))
    assert publish(folder, shard, problems)
    before = (folder.folder / f"{shard.name}.jsonl").read_bytes()
    (folder.parts / f"{shard.name}.0002.b.jsonl").write_bytes(lines_of(rows_for(problems, "late")))
    assert publish(folder, shard, problems)
    assert (folder.folder / f"{shard.name}.jsonl").read_bytes() == before
    assert not list(folder.parts.iterdir())


def test_a_part_cut_at_any_byte_loses_only_the_row_that_was_being_written(made):
    folder, problems, shard = made
    rows = rows_for(problems)
    whole = lines_of(rows)
    ends = [sum(len(line_of(row)) for row in rows[: n + 1]) for n in range(len(rows))]
    part = folder.parts / f"{shard.name}.0001.a.jsonl"
    for end in range(0, len(whole) + 1, 7):
        part.write_bytes(whole[:end])
        assert len(journaled(folder, shard)) == sum(end >= one for one in ends)


@given(garbage=st.binary(max_size=200))
@pytest.mark.slow
def test_garbage_in_a_part_costs_no_row_and_no_crash(garbage, tmp_path_factory):
    problems = problems_like(4)
    _, folder = run_with(tmp_path_factory.mktemp("run"), problems)
    shard = Shard(0, 3, 0, 1)
    (folder.parts / f"{shard.name}.0001.a.jsonl").write_bytes(garbage + b"\n" + lines_of(rows_for(problems)))
    assert publish(folder, shard, problems)
    assert len(list(read_records(folder.folder / f"{shard.name}.jsonl", Solution))) == 8
