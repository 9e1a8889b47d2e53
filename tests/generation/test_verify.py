"""The proof of a run: it holds for an honest run, and says what is wrong with any other, by file and line."""

import msgspec
import pytest

from mathmill.generation.parts import clear_away_what_is_published, publish, reopen
from mathmill.generation.progress import set_progress
from mathmill.generation.sets import seed_of
from mathmill.generation.shards import keys_of, left, reopened, set_aside_file
from mathmill.generation.verify import verify_set
from mathmill.records import line_of, lines_of
from mathmill.stages.sampling import work_of
from tests.generation.making import problems_like, run_with, solution_of

CODES = {"x"}


def honest(folder, problem, sample_index):
    one = folder.load()
    return msgspec.structs.replace(
        solution_of(problem, sample_index),
        seed=seed_of(one, problem.problem_id, sample_index),
        options_sha=one.options_sha,
        prompt_sha=one.prompt.sha,
    )


def settle(folder, problems, set_aside=()):
    """Publish every shard that is left, with these keys set aside."""
    by_id = {problem.problem_id: problem for problem in problems}
    for shard in left(folder, folder.load()):
        keys = keys_of(folder, shard, problems)
        rows = [honest(folder, by_id[key[0]], key[1]) for key in keys if key not in set_aside]
        (folder.parts / f"{shard.name}.0001.a.jsonl").write_bytes(lines_of(rows))
        lines = [
            b'{"problem_id":"%s","sample_index":%d,"reason":"no"}\n' % (k[0].encode(), k[1])
            for k in keys
            if k in set_aside
        ]
        if lines:
            (folder.quarantine / f"{shard.name}.0001.a.jsonl").write_bytes(b"".join(lines))
        assert publish(folder, shard, problems)


@pytest.fixture
def made(tmp_path):
    problems = problems_like(8)
    _, folder = run_with(tmp_path, problems, num_samples=2)
    return folder, problems


def test_an_honest_run_is_proved(made):
    folder, problems = made
    settle(folder, problems)
    proof = verify_set(folder, CODES)
    assert proof.holds and (proof.num_rows, proof.num_made) == (16, 16), proof.lines()


def test_rows_that_are_still_to_come_are_counted_and_the_proof_does_not_hold(made):
    folder, problems = made
    settle(folder, problems)
    folder.grow(3)
    proof = verify_set(folder, CODES)
    assert not proof.holds
    assert (proof.num_to_come, proof.num_wrong, proof.num_made) == (8, 0, 16)


def test_what_was_set_aside_is_settled_until_it_is_asked_for_again_and_then_made_beside_the_shard(made):
    folder, problems = made
    bad = {("toy/test/1", 0), ("toy/test/6", 1)}
    settle(folder, problems, set_aside=bad)
    proof = verify_set(folder, CODES)
    assert proof.holds and (proof.num_made, proof.num_set_aside) == (14, 2)
    before = {path: path.read_bytes() for path in folder.folder.glob("p0*.jsonl")}

    reopen(folder)
    reopen(folder)
    assert len(reopened(folder)) == 2  # once
    assert [shard.name for shard in left(folder, folder.load())] == [
        "p00000-00003.s000-001.r1",
        "p00004-00007.s000-001.r1",
    ]
    progress = set_progress(folder)
    assert (progress.num_rows, progress.num_done, progress.num_quarantined) == (16, 14, 0)
    assert verify_set(folder, CODES).num_to_come == 2

    settle(folder, problems, set_aside={("toy/test/6", 1)})
    proof = verify_set(folder, CODES)
    assert proof.holds and (proof.num_made, proof.num_set_aside) == (15, 1), proof.lines()
    assert (set_progress(folder).num_done, set_progress(folder).num_quarantined) == (16, 1)
    assert before.items() <= {path: path.read_bytes() for path in folder.folder.glob("p0*.jsonl")}.items()

    reopen(folder)
    settle(folder, problems)
    assert verify_set(folder, CODES).num_made == 16


def test_rows_that_an_open_shard_set_aside_stay_so_until_it_is_published(made):
    folder, _ = made
    part = folder.quarantine / "p00000-00003.s000-001.0001.a.jsonl"
    part.write_bytes(b'{"problem_id":"toy/test/1","sample_index":0,"reason":"no"}\n')
    reopen(folder)
    assert not reopened(folder)
    assert part.exists()  # its worker has it open, and its publisher needs the reason


def test_a_set_whose_launch_was_killed_before_it_asked_for_samples_is_not_proven(made):
    folder, _ = made
    for path in folder.folder.glob("samples.*"):
        path.unlink()
    assert any("no number of samples was asked for" in line for line in verify_set(folder, CODES).lines())


def test_what_two_claimants_made_and_set_aside_is_made(made):
    folder, problems = made
    shard = left(folder, folder.load())[0]
    rows = [honest(folder, problem, sample) for problem in problems[:4] for sample in (0, 1)]
    (folder.parts / f"{shard.name}.0002.b.jsonl").write_bytes(lines_of(rows))
    (folder.quarantine / f"{shard.name}.0001.a.jsonl").write_bytes(
        b'{"problem_id":"toy/test/1","sample_index":0,"reason":"no"}\n'
    )
    assert publish(folder, shard, problems)
    assert not list(folder.quarantine.iterdir())
    assert set_progress(folder).num_quarantined == 0
    assert verify_set(folder, CODES).num_wrong == 0


def test_a_publisher_that_was_killed_before_it_cleared_away_loses_no_reason(made):
    folder, problems = made
    shard = left(folder, folder.load())[0]
    rows = [honest(folder, problem, sample) for problem in problems[:4] for sample in (0, 1)]
    (folder.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows[1:]))
    (folder.parts / f"{shard.name}.0001.a.jsonl").write_bytes(lines_of(rows[1:]))
    line = b'{"problem_id":"toy/test/0","sample_index":0,"reason":"no"}\n'
    (folder.quarantine / f"{shard.name}.0001.a.jsonl").write_bytes(line)
    assert verify_set(folder, CODES).num_wrong == 0
    assert set_progress(folder).num_quarantined == 1
    work = work_of(folder.load(), folder, num_samples=2, retry_quarantined=True)
    assert work.rows_left == 1 + 8  # the row that is asked for again, and the other shard
    clear_away_what_is_published(folder, problems)
    assert not list(folder.parts.iterdir())
    assert [path.name for path in folder.quarantine.iterdir()] == [f"{shard.name}.jsonl"]
    proof = verify_set(folder, CODES)
    assert (proof.num_wrong, proof.num_set_aside) == (0, 1)


def test_asking_again_right_after_a_publisher_was_killed_loses_no_reason(made):
    folder, problems = made
    shard = left(folder, folder.load())[0]
    rows = [honest(folder, problem, sample) for problem in problems[:4] for sample in (0, 1)]
    (folder.folder / f"{shard.name}.jsonl").write_bytes(lines_of(rows[1:]))
    line = b'{"problem_id":"toy/test/0","sample_index":0,"reason":"no"}\n'
    (folder.quarantine / f"{shard.name}.0001.a.jsonl").write_bytes(line)
    reopen(folder)
    assert keys_of(folder, shard.again(), problems) == [("toy/test/0", 0)]


def test_a_further_attempt_whose_list_is_not_to_be_seen_is_never_taken_for_empty(made):
    folder, problems = made
    settle(folder, problems, set_aside={("toy/test/1", 0)})
    reopen(folder)
    [again] = left(folder, folder.load())
    set_aside_file(folder, again.before()).unlink()
    with pytest.raises(FileNotFoundError):
        publish(folder, again, problems)
    assert "No such file" in "\n".join(verify_set(folder, CODES).lines())


def change(row, **changes):
    return msgspec.structs.replace(row, **changes)


FORGERIES = {
    "a row twice": (lambda rows: [*rows, rows[0]], "toy/test/0 sample 0 is here twice"),
    "a row missing": (lambda rows: rows[1:], "toy/test/0 sample 0 is missing, and not in quarantine"),
    "a row of another shard": (
        lambda rows: [change(rows[0], problem_id="toy/test/7"), *rows[1:]],
        ":1: toy/test/7 sample 0 does",
    ),
    "another seed": (lambda rows: [*rows[:2], change(rows[2], seed=1), *rows[3:]], ":3: seed is 1, and should be"),
    "other options": (lambda rows: [change(rows[0], options_sha="y"), *rows[1:]], "options_sha is 'y', and"),
    "another prompt": (lambda rows: [change(rows[0], prompt_sha="y"), *rows[1:]], "prompt_sha is 'y', and"),
    "another model": (lambda rows: [change(rows[0], model="y"), *rows[1:]], "model is 'y', and should be 'toy'"),
    "another question": (lambda rows: [change(rows[0], problem="y"), *rows[1:]], "problem is 'y', and"),
    "another gold answer": (lambda rows: [change(rows[0], expected_answer="y"), *rows[1:]], "expected_answer is 'y'"),
    "other code": (
        lambda rows: [change(rows[0], code_sha="y"), *rows[1:]],
        "code_sha is 'y', which is no code of this",
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_row_is_found(forgery, made):
    folder, problems = made
    settle(folder, problems)
    rows = [honest(folder, problem, sample) for problem in problems[:4] for sample in (0, 1)]
    forge, told = FORGERIES[forgery]
    (folder.folder / "p00000-00003.s000-001.jsonl").write_bytes(lines_of(forge(rows)))
    proof = verify_set(folder, CODES)
    assert not proof.holds
    assert told in "\n".join(proof.lines())


def test_files_that_are_damaged_are_found(made):
    folder, problems = made
    settle(folder, problems)
    path = folder.folder / "p00000-00003.s000-001.jsonl"
    whole = path.read_bytes()
    for content, told in (
        (whole[:-5], "its last line is torn"),
        (whole.replace(b'{"problem_id"', b"{problem", 1), ":1: malformed"),
        (whole[:40] + b"\0" * 40 + whole[80:], ":1: malformed"),
    ):
        path.write_bytes(content)
        assert told in "\n".join(verify_set(folder, CODES).lines())
    path.write_bytes(whole)
    (folder.folder / "p00090-00093.s000-001.jsonl").write_bytes(line_of(honest(folder, problems[0], 0)))
    assert "nobody asked for this shard" in "\n".join(verify_set(folder, CODES).lines())
