"""Jobs on the real Slurm: what sbatch got, what steps get, and every way to end."""

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mathmill.launch.cluster import Partitions
from mathmill.launch.status import cancel_jobs, job_states, live_jobs
from mathmill.launch.submit import submit
from mathmill.run import Run
from mathmill.stages.status import job_lines
from tests.launch.toys import MAIN, SANDBOX, SERVER, SLURM, environment, new_run, notes, script_of, toy_job, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def run(tmp_path: Path, slurm: object) -> Run:
    return new_run(tmp_path / "demo")


@pytest.fixture
def sbatch_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line a call: an sbatch goes first on PATH that notes its arguments and calls the real one."""
    real, calls, folder = shutil.which("sbatch"), tmp_path / "sbatch-calls", tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/bash\necho "$@" >>{calls}\nexec {real} "$@"\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


def all_started(run: Run, count: int) -> bool:
    return sum(any(line.startswith("terminal") for line in lines) for lines in notes(run).values()) == count


@pytest.mark.parametrize("tasks", [1, 128])
def test_sbatch_is_called_once_and_gets_our_very_bytes(run: Run, slurm, sbatch_calls: Path, tasks: int):
    job = toy_job(tasks=tasks, directives={"hold": True})
    script = script_of(job, SLURM, run)

    ids = submit(script, job, SLURM, run)

    try:
        assert len(sbatch_calls.read_text().splitlines()) == 1
        slurm.call("scontrol", "write", "batch_script", ids[0].split("_")[0], run.folder / "what-sbatch-got")
        assert (run.folder / "what-sbatch-got").read_bytes() == script.read_bytes()
        assert ids == ([f"{ids[0].split('_')[0]}_{n}" for n in range(128)] if tasks == 128 else ids)
        assert len(ids) == tasks
        assert not list(run.folder.rglob("*.pkl"))
        [state] = job_states(run)
        assert state.counts == {"PENDING": tasks}
    finally:
        cancel_jobs(job.submission for job in live_jobs(run))


def test_an_array_runs_with_logs_where_the_launch_said_and_states_from_sacct(run: Run, slurm):
    job = toy_job(main={}, server={}, tasks=3)
    ids = submit(script_of(job, SLURM, run), job, SLURM, run)

    assert set(slurm.states(ids[0].split("_")[0]).values()) == {"COMPLETED"}

    assert sorted(notes(run)) == [f"{task}-0" for task in ids]
    for number, task in enumerate(ids):
        told = json.loads(notes(run)[f"{task}-0"][0].removeprefix("started "))
        assert (told["MATHMILL_TASK"], told["MATHMILL_TASKS"], told["MATHMILL_JOB"]) == (str(number), "3", task)
        log = (run.logs / f"generation.{task}.log").read_text()
        assert "main runs\nmain ends\n" in log
        assert "ended in order" in (run.logs / f"generation.{task}.server.log").read_text()
        assert not Path(told["MATHMILL_NODE_DIR"]).exists()
    assert wait_for(lambda: job_states(run)[0].counts == {"COMPLETED": 3})
    assert list(run.servers.iterdir()) == []


def test_secrets_go_by_name_alone_and_nothing_else_of_the_launching_shell_goes(
    run: Run, slurm, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("ONLY_HERE", "of the launching shell")
    cluster = replace(SLURM, env=["HF_TOKEN", "NOT_SET_ANYWHERE"])
    job = toy_job(steps=(SERVER, SANDBOX, MAIN), options={"server": {}, "sandbox": {}, "generation": {}})
    [task] = submit(script_of(job, cluster, run), job, cluster, run)

    assert slurm.states(task) == {task: "COMPLETED"}

    server = environment((run.logs / f"generation.{task}.server.log").read_text().splitlines())
    sandbox = environment((run.logs / f"generation.{task}.sandbox.log").read_text().splitlines())
    main = environment(notes(run)[f"{task}-0"])
    assert server["HF_TOKEN"] == main["HF_TOKEN"] == "hf_secret_value"
    assert "ONLY_HERE" not in main and "hf_secret_value" not in json.dumps(sandbox)
    assert not [name for name in sandbox if name.startswith("SLURM")]
    assert main["PYTHONPATH"].startswith(f"{run.folder}/code/toys")
    written = "".join(path.read_text() for path in (*run.jobs.iterdir(), run.logs / f"generation.{task}.log"))
    assert "hf_secret_value" not in written


def test_each_step_gets_the_gpus_and_cpus_it_names(run: Run, slurm):
    steps = (replace(SERVER, gpus=2), SANDBOX, MAIN)
    cluster = replace(SLURM, partitions=Partitions(gpu="batch"), cpus=4)
    job = toy_job(steps=steps, options={"server": {}, "sandbox": {}, "generation": {}})
    for directive in ("gpus-per-node={gpus}", "gres=gpu:{gpus}"):
        site = replace(cluster, gpu_directive=directive)
        named = replace(job, name=f"generation-{directive[:4]}")
        [task] = submit(script_of(named, site, run), named, site, run)
        assert slurm.states(task) == {task: "COMPLETED"}, (run.logs / f"{named.name}.{task}.log").read_text()

        server = environment((run.logs / f"{named.name}.{task}.server.log").read_text().splitlines())
        main = environment(notes(run)[f"{task}-0"])
        assert len(server["CUDA_VISIBLE_DEVICES"].split(",")) == 2
        assert "CUDA_VISIBLE_DEVICES" not in main
        assert server["SLURM_CPUS_PER_TASK"] == main["SLURM_CPUS_PER_TASK"] == "4"


def test_steps_may_span_nodes_with_a_task_a_gpu(run: Run, slurm):
    server = replace(SERVER, nodes=2, tasks_per_node=2, gpus=2)
    cluster = replace(SLURM, partitions=Partitions(gpu="batch"), cpus=4)
    job = toy_job(steps=(server, SANDBOX, MAIN), options={"server": {}, "sandbox": {}, "generation": {}})
    [task] = submit(script_of(job, cluster, run), job, cluster, run)

    assert slurm.states(task) == {task: "COMPLETED"}, (run.logs / f"generation.{task}.log").read_text()

    log = (run.logs / f"generation.{task}.server.log").read_text()
    assert log.count("ended in order") == 4
    ranks = sorted(re.findall(r"^rank (\w+) (\d) (\d)$", log, re.MULTILINE))
    assert [(node, proc) for _, node, proc in ranks] == [("0", "0"), ("0", "1"), ("1", "2"), ("1", "3")]
    assert environment(notes(run)[f"{task}-0"])["SLURMD_NODENAME"] == ranks[0][0]


def test_a_server_that_dies_at_start_fails_the_job_within_seconds_and_status_shows_why(run: Run, slurm):
    job = toy_job(server={"die_at_start": True})
    [task] = submit(script_of(job, SLURM, run), job, SLURM, run)

    assert slurm.states(task) == {task: "FAILED"}

    log = (run.logs / f"generation.{task}.log").read_text()
    assert "server died with exit code 3" in log and "out of memory on purpose" in log
    shown = wait_for(lambda: [line for line in job_lines(job_states(run), run) if "failed" in line])
    assert str(run.logs / f"generation.{task}.log") in "\n".join(shown)
    assert "out of memory on purpose" in "\n".join(job_lines(job_states(run), run))


def test_usr2_drains_and_every_task_queues_again_by_itself_the_last_one_too(run: Run, slurm):
    job = toy_job(main={"first_seconds": 100}, server={}, tasks=2)
    ids = submit(script_of(job, SLURM, run), job, SLURM, run)
    array = ids[0].split("_")[0]
    wait_for(lambda: all_started(run, 2), 60)
    last_raw = slurm.call("squeue", "--noheader", "--format=%A", f"--jobs={ids[1]}").strip()
    assert last_raw == array, "the trap: the last task's SLURM_JOB_ID is the array's id"

    slurm.call("scancel", "--batch", "--signal=USR2", ids[1])
    wait_for(lambda: f"{ids[1]}-1" in notes(run) or "ended 75" in notes(run)[f"{ids[1]}-0"], 30)
    time.sleep(3)
    assert notes(run)[f"{ids[0]}-0"][-1].startswith("terminal"), "the other task works on"
    slurm.call("scancel", "--batch", "--signal=USR2", ids[0])

    assert slurm.states(array) == dict.fromkeys(ids, "COMPLETED")
    assert sorted(notes(run)) == sorted(f"{task}-{start}" for task in ids for start in (0, 1))
    for task in ids:
        assert notes(run)[f"{task}-0"][-3:] == ["SIGUSR2", "flushed", "ended 75"]
        assert notes(run)[f"{task}-1"][-1] == "ended 0"
        assert "queues again" in (run.logs / f"generation.{task}.log").read_text()
    assert [task.starts for task in job_states(run)[0].tasks] == [2, 2]


def test_a_drained_task_of_a_cancelled_run_stays_dead(run: Run, slurm):
    job = toy_job(main={"seconds": 100})
    [task] = submit(script_of(job, SLURM, run), job, SLURM, run)
    wait_for(lambda: all_started(run, 1), 60)
    (run.folder / "cancelled").touch()
    slurm.call("scancel", "--batch", "--signal=USR2", task)

    assert set(slurm.states(task).values()) == {"FAILED"}

    assert list(notes(run)) == [f"{task}-0"] and notes(run)[f"{task}-0"][-1] == "ended 75"


def test_a_task_gives_up_after_starts_that_finished_nothing_and_goes_on_after_one_that_did(run: Run, slurm):
    job = toy_job(main={"first_seconds": 100}, tasks=2, max_idle_starts=1)
    ids = submit(script_of(job, SLURM, run), job, SLURM, run)
    wait_for(lambda: all_started(run, 2), 60)
    run.progress.mkdir()
    (run.progress / ids[1]).write_text("0\n")
    slurm.call("scancel", "--batch", "--signal=USR2", ids[0].split("_")[0])

    assert slurm.states(ids[0].split("_")[0]) == {ids[0]: "FAILED", ids[1]: "COMPLETED"}

    assert sorted(notes(run)) == [f"{ids[0]}-0", f"{ids[1]}-0", f"{ids[1]}-1"]
    assert "1 starts in a row finished nothing" in (run.logs / f"generation.{ids[0]}.log").read_text()


def test_a_task_of_a_cancelled_run_does_not_begin(run: Run, slurm):
    job = toy_job()
    (run.folder / "cancelled").touch()
    [task] = submit(script_of(job, SLURM, run), job, SLURM, run)

    assert slurm.states(task) == {task: "FAILED"}

    assert notes(run) == {} and "the run was cancelled" in (run.logs / f"generation.{task}.log").read_text()


def test_cancelling_lets_main_flush_and_nothing_comes_back(run: Run, slurm):
    job = toy_job(main={"seconds": 100}, server={}, tasks=2)
    ids = submit(script_of(job, SLURM, run), job, SLURM, run)
    wait_for(lambda: all_started(run, 2), 60)
    cancel_jobs(job.submission for job in live_jobs(run))

    assert set(slurm.states(ids[0].split("_")[0]).values()) == {"CANCELLED by 0"}

    assert sorted(notes(run)) == [f"{task}-0" for task in ids]
    assert all(lines[-2:] == ["flushed", "ended 143"] for lines in notes(run).values())
    assert "died" not in "".join(path.read_text() for path in run.logs.iterdir())


def test_a_preempted_job_flushes_and_slurm_queues_it_again(run: Run, slurm):
    preemptible = replace(SLURM, partitions=Partitions(cpu="preempt"), directives={"exclusive": True})
    job = toy_job(main={"first_seconds": 100}, directives={"nodelist": "node1"})
    [task] = submit(script_of(job, preemptible, run), job, preemptible, run)
    wait_for(lambda: all_started(run, 1), 60)
    slurm.call("srun", "--partition=batch", "--nodelist=node1", "--exclusive", "sleep", "1")

    assert slurm.states(task) == {task: "COMPLETED"}

    assert notes(run)[f"{task}-0"][-2:] == ["flushed", "ended 143"] and notes(run)[f"{task}-1"][-1] == "ended 0"
    assert "queues again" not in (run.logs / f"generation.{task}.log").read_text()


@pytest.mark.trial
def test_a_job_at_its_time_limit_drains_and_goes_on(run: Run, slurm):
    cluster = replace(SLURM, partitions=Partitions(cpu="short"), time_limit="1:00", stop_before="0:30")
    job = toy_job(main={"first_seconds": 300}, server={})
    [task] = submit(script_of(job, cluster, run), job, cluster, run)

    assert slurm.states(task, timeout=240) == {task: "COMPLETED"}

    assert notes(run)[f"{task}-0"][-3:] == ["SIGUSR2", "flushed", "ended 75"]
    assert notes(run)[f"{task}-1"][-1] == "ended 0"


def test_a_step_left_by_main_does_not_outlive_the_job(run: Run, slurm):
    job = toy_job(main={}, server={"ignores_term": True})
    [task] = submit(script_of(job, SLURM, run), job, SLURM, run)

    assert slurm.states(task) == {task: "COMPLETED"}

    assert "server did not end within 5 s" in (run.logs / f"generation.{task}.log").read_text()
    assert (
        subprocess.run(["squeue", "--noheader", "--steps", f"--job={task}"], capture_output=True, text=True).stdout
        == ""
    )
