"""What status says of a run that is at work and of one that is over."""

import msgspec
import pytest

from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.generation.claims import Claims, Heartbeat, this_worker
from mathmill.generation.effort import Counts, Effort, EffortNotes, efforts, live_efforts
from mathmill.generation.progress import ShardCounts, set_progress
from mathmill.generation.shards import left
from mathmill.launch.status import JobState, read_sacct
from mathmill.records import lines_of
from mathmill.stages import status
from mathmill.stages.status import cost_lines, rate_lines, set_lines, shards_of, status_lines
from tests.generation.making import problems_like, run_with, solution_of
from tests.launch.test_status import submission

EFFORT = Effort(
    job="9_0",
    restart=0,
    begun_at=0.0,
    wall_s=1800.0,
    busy_s=1350.0,
    num_rows=100,
    num_correct=60,
    num_tokens=27_000,
    rows_per_s=0.5,
)


def test_a_run_at_work_says_its_shards_its_rate_and_how_long_it_will_take(tmp_path):
    problems = problems_like(16)
    run, folder = run_with(tmp_path, problems)
    card = this_worker()
    beat = Heartbeat(run, card)
    dead = Claims(run, msgspec.structs.replace(card, nonce="dead"))
    shards = left(folder, folder.load())
    Claims(run, card).take(folder, shards[:1])
    dead.take(folder, shards[1:2])
    rows = [solution_of(problem, sample) for problem in problems[-4:] for sample in (0, 1)]
    (folder.folder / f"{shards[-1].name}.jsonl").write_bytes(lines_of(rows))
    write_whole(run.folder / "efforts" / f"{card.name}.json", msgspec.json.encode(EFFORT))

    assert shards_of(run) == [ShardCounts(done=1, at_work=1, waiting=2)]
    [line] = set_lines([set_progress(folder)], shards_of(run))
    assert line == "  toy-test          8 of 32 rows  25%  shards 1 done, 1 at work, 2 waiting"
    assert rate_lines(run, [set_progress(folder)]) == ["  0.5 rows/s by 1 worker, about 0:48 left"]
    beat.end()
    assert live_efforts(run) == [] and rate_lines(run, [set_progress(folder)]) == []


def test_a_run_that_is_over_says_what_it_cost_over_all_its_starts(tmp_path):
    run, _ = run_with(tmp_path, problems_like(4))
    for name in ("a", "b"):
        write_whole(run.folder / "efforts" / f"{name}.json", msgspec.json.encode(EFFORT))
    gpus = "9|REQUEUED|0:0|1800|gres/gpu=8|\n9|COMPLETED|0:0|1800|gres/gpu=8|\n"
    for lines, told in (
        (
            gpus,
            "8.00 GPU hours over all starts, 25% of it idle; 20 tokens/s a task at work; 240.00 GPU seconds a correct",
        ),
        (gpus.replace("gres/gpu=8", ""), "1.00 task hours over all starts, 25% of it idle;"),
    ):
        job = JobState(submission=submission(), tasks=list(read_sacct(lines).values()))
        [line] = cost_lines(run, [job])
        assert told in line
    assert cost_lines(run, []) == ["  20 tokens/s a task at work"]


def test_a_worker_notes_its_effort_and_leaves_it_at_its_end(tmp_path):
    run, _ = run_with(tmp_path, problems_like(4))
    with EffortNotes(run, "w", "9_0", 2, lambda: Counts(busy_s=1.0, num_rows=7, num_correct=5, num_tokens=70)):
        pass
    [effort] = efforts(run)
    assert (effort.job, effort.restart, effort.num_rows, effort.num_correct, effort.num_tokens) == ("9_0", 2, 7, 5, 70)


def test_a_run_that_stopped_says_so_and_watching_outlives_an_accounting_that_is_away(tmp_path, monkeypatch, capsys):
    run, _ = run_with(tmp_path, problems_like(4))
    assert "nothing is queued or running" in status_lines(run)[0][-1]
    real = status.status_lines
    looks = iter([lambda _: (["at work"], True), away, real])
    monkeypatch.setattr(status, "status_lines", lambda run: next(looks)(run))
    monkeypatch.setattr(status, "WATCH_S", 0.0)
    assert status.watch(run) == 0
    shown = capsys.readouterr().out
    assert shown.index("at work") < shown.index("sacct does not answer") < shown.index("nothing is queued or running")
    monkeypatch.setattr(status, "status_lines", away)
    with pytest.raises(UserError):  # where it never was there, waiting is in vain
        status.watch(run)


def away(_: object) -> None:
    raise UserError("sacct does not answer")
