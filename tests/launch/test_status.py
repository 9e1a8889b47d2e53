"""What sacct's lines mean, and what is shown of them. The lines were printed by sacct 22.05."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.errors import UserError
from mathmill.generation.progress import SetProgress
from mathmill.launch.status import JobState, expand, job_states, live_jobs, read_sacct
from mathmill.launch.submissions import LocalTask, Submission, append_submission, local_ends, submissions
from mathmill.run import Run
from mathmill.stages.status import job_lines, set_lines, sets_progress


def submission(**changes: object) -> Submission:
    fields = {
        "name": "generation",
        "script": "generation.sbatch",
        "executor": "slurm",
        "submitted_at": 0.0,
        "job_id": "9",
    }
    return Submission(**{**fields, "cluster": "selene", **changes})  # type: ignore[arg-type]


def test_waiting_tasks_stand_together():
    assert expand("123_[4,7-9%32]") == ["123_4", "123_7", "123_8", "123_9"]
    assert expand("123_[0-8:4]") == ["123_0", "123_4", "123_8"]
    assert expand("123_5") == ["123_5"] and expand("123") == ["123"]


@given(st.sets(st.integers(0, 300), min_size=1))
def test_any_list_of_tasks_is_expanded(tasks: set[int]):
    ordered = sorted(tasks)
    parts: list[list[int]] = []
    for task in ordered:
        if parts and parts[-1][-1] == task - 1:
            parts[-1].append(task)
        else:
            parts.append([task])
    text = ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)

    assert expand(f"7_[{text}%4]") == [f"7_{task}" for task in ordered]


SACCT = """\
9_3|COMPLETED|0:0|1800|billing=4,cpu=4,gres/gpu=8,node=1
9_0|REQUEUED|0:0|3600|billing=4,cpu=4,gres/gpu=8,node=1
9_0|RUNNING|0:0|900|billing=4,cpu=4,gres/gpu=8,node=1
9_1|FAILED|1:0|2|billing=4,cpu=4,node=1
9_2|CANCELLED by 1000|0:0|0|
9_[4-5]|PENDING|0:0|0|
"""


def test_states_are_the_latest_and_gpu_hours_are_of_all_starts():
    states = read_sacct(SACCT)

    assert {task: state.state for task, state in states.items()} == {
        "9_3": "COMPLETED",
        "9_0": "RUNNING",
        "9_1": "FAILED",
        "9_2": "CANCELLED",
        "9_4": "PENDING",
        "9_5": "PENDING",
    }
    assert (states["9_0"].starts, states["9_0"].gpu_hours, states["9_3"].gpu_hours) == (2, 10.0, 4.0)


def test_a_job_is_a_line_and_its_failures_show_the_ends_of_their_logs(tmp_path: Path):
    run = Run(tmp_path)
    run.logs.mkdir()
    (run.logs / "generation.9_1.log").write_text("".join(f"line {n}\n" for n in range(20)))
    states = read_sacct(SACCT)
    job = JobState(submission=submission(tasks=6, is_array=True), tasks=[states[f"9_{n}"] for n in range(6)])

    line = (
        "  generation  job 9 on selene: 2 pending, 1 running, 1 failed (exit code 1), 1 cancelled, 1 completed"
        "  14.0 GPU hours  requeued once"
    )
    logs = [
        f"    9_1 failed (exit code 1): {tmp_path}/logs/generation.9_1.log",
        *(f"      | line {n}" for n in range(15, 20)),
    ]
    assert job_lines([job], run) == [line, *logs]
    assert job_lines([job], run, is_whole=True) == [line]
    earlier = replace(job, submission=submission(tasks=6, is_array=True, submitted_at=-1.0))
    assert job_lines([earlier, job], run) == [line, line, *logs]
    assert [task.task_id for task in job.live] == ["9_0", "9_4", "9_5"]


def test_a_run_without_jobs_or_sets_says_so(tmp_path: Path):
    assert job_lines([], Run(tmp_path)) == ["  no jobs yet"] and sets_progress(Run(tmp_path)) == []


def test_a_task_that_was_queued_again_waits_to_start(tmp_path: Path):
    states = read_sacct("9|REQUEUED|0:0|5|\n9|REQUEUED|0:0|5|\n9|PENDING|0:0|0|\n")
    job = JobState(submission=submission(), tasks=[states["9"]])
    last = JobState(submission=submission(), tasks=[read_sacct("9|REQUEUED|0:0|5|\n")["9"]])

    assert job_lines([job], Run(tmp_path)) == ["  generation  job 9 on selene: 1 waiting to start again (2 requeues)"]
    assert job_lines([last], Run(tmp_path)) == ["  generation  job 9 on selene: 1 waiting to start again (1 requeue)"]


def test_rows_of_unfinished_shards_count_as_done():
    progress = SetProgress(
        name="MATH-test",
        num_rows=800,
        num_done=0,
        num_in_parts=44,
        num_quarantined=0,
    )

    assert set_lines([progress]) == ["  MATH-test         44 of 800 rows  5%  (0 in finished shards)"]
    assert set_lines([replace(progress, num_done=400, num_in_parts=0)]) == ["  MATH-test        400 of 800 rows  50%"]


def test_without_sacct_the_ids_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append_submission(Run(tmp_path), submission())
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(
        UserError, match="no sacct on this machine, which knows the states of jobs 9: run this on a login node"
    ):
        job_states(Run(tmp_path))


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path):
    run = Run(tmp_path)
    append_submission(run, submission(job_id="1"))
    with (run.jobs / "submitted.jsonl").open("ab") as stream:
        stream.write(b'{"name":"gener')
    append_submission(run, submission(job_id="2"))

    assert [line.job_id for line in submissions(run)] == ["1", "2"]


APPENDER = """
import sys
from pathlib import Path
from mathmill.launch.submissions import LocalEnd, append_end
from mathmill.run import Run
for number in range(40):
    append_end(Run(Path(sys.argv[1])), LocalEnd(task_id=f"{sys.argv[2]}-{number}", code=0))
"""


@pytest.mark.slow
def test_launches_side_by_side_lose_no_line(tmp_path: Path):
    for each in [subprocess.Popen([sys.executable, "-c", APPENDER, tmp_path, name]) for name in "abc"]:
        assert each.wait() == 0
    assert local_ends(Run(tmp_path)) == {f"{name}-{number}": 0 for name in "abc" for number in range(40)}


def test_a_process_id_that_was_used_again_is_not_our_run(tmp_path: Path):
    import os

    task = LocalTask(task=0, pid=os.getpid(), born="1")
    append_submission(Run(tmp_path), submission(executor="local", job_id="", host=socket.gethostname(), local=[task]))

    assert live_jobs(Run(tmp_path)) == []


def test_a_run_of_another_machine_is_named_by_it(tmp_path: Path):
    task = LocalTask(task=0, pid=1, born="1")
    append_submission(Run(tmp_path), submission(executor="local", job_id="", host="laptop", local=[task]))

    assert job_states(Run(tmp_path))[0].counts == {"on laptop": 1}
