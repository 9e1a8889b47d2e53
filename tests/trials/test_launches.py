"""Trials: the launch command killed at random moments: given again it makes every row, and no job runs that nobody noted."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trials.scene import REPO, Trial, asked_for, in_queue, replaying, site, wait_until, words

pytestmark = [pytest.mark.trial, pytest.mark.slurm]
KILLS_A_RUN = 3


@pytest.fixture
def slow_answers(tmp_path, monkeypatch):
    """The real sbatch, whose answer takes a while, so that many kills fall between it and its note."""
    real, folder = shutil.which("sbatch"), tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(f'#!/bin/bash\n{real} "$@"\ncode=$?\nsleep 0.15\nexit $code\n')
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_launch_killed_at_any_moment_loses_nothing_and_leaves_no_job_that_nobody_knows_of(
    workdir, slurm, slow_answers
):
    cluster, ids, chance = site("test"), words("all.jsonl", 12), random.Random(1)
    num_kills = num_submitted = num_unknown = 0
    with replaying("all.jsonl", 0.05) as url:
        for number in range(asked_for("launches")):
            flags = ["--cluster", cluster, "--num_jobs", "2", "--seed", str(number), "--prompt", "text_base"]
            flags += ["--server", "openai", "--server_address", url]
            trial = Trial(f"launch-{number}", "all.jsonl", ids, 2, flags)
            killed_at = [killed_launch(trial, chance) for _ in range(KILLS_A_RUN)]
            num_kills += sum(at is not None for at in killed_at)
            wait_until(lambda trial=trial: not jobs_of(trial), 300, "the end of what killed launches submitted")
            if job := trial.launch():
                wait_until(lambda job=job: not in_queue(job), 300, f"the end of job {job}")
            trial.check()
            assert trial.launch() == "", "a finished run"
            unknown = ended_unknown(trial)
            num_unknown += len(unknown)
            num_submitted += trial.num_submitted
            print(f"{trial.name}: killed after {killed_at} s, {trial.num_submitted} jobs noted, {len(unknown)} not")
    print(
        f"{num_kills} launches killed, {num_submitted} jobs noted, {num_unknown} that nobody had noted ended by themselves"
    )
    assert num_kills > asked_for("launches") and num_unknown


def killed_launch(trial: Trial, chance: random.Random) -> float | None:
    """Seconds after which the launch was killed, None where it had ended before."""
    command = [sys.executable, str(REPO / "pipeline" / "run_generation.py"), "--problems", trial.problems]
    command += ["--run", trial.name, "--num_samples", str(trial.num_samples), *trial.flags, "--add_jobs"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPO)}, stderr=subprocess.DEVNULL) as launch:
        begun = time.monotonic()
        if chance.random() < 0.7:
            wait_for_a_script(trial, launch)
            time.sleep(chance.uniform(0, 0.4))  # sbatch is called, answers, and is noted
        else:
            time.sleep(chance.uniform(0, 3))
        if launch.poll() is not None:
            return None
        launch.send_signal(signal.SIGKILL)
        return round(time.monotonic() - begun, 2)


def wait_for_a_script(trial: Trial, launch: subprocess.Popen) -> None:
    """Until a script is written: sbatch is called next."""
    before = len(list(trial.run.jobs.glob("*.sbatch")))
    while launch.poll() is None and len(list(trial.run.jobs.glob("*.sbatch"))) == before:
        time.sleep(0.002)


def jobs_of(trial: Trial) -> list[str]:
    """Every job of this run that is queued or runs, by its name: also those that nobody noted."""
    names = [f"{trial.name}-generation{number}" for number in ("", *(f"-{n}" for n in range(2, 9)))]
    command = ["squeue", "--noheader", "--me", f"--name={','.join(names)}", "--format=%A"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def ended_unknown(trial: Trial) -> set[str]:
    """Jobs that ran and are not in the run's list; each must have ended before it did anything."""
    noted = {str(line["job_id"]) for line in trial.submitted}
    ran = {path.name.split(".")[1].split("_")[0] for path in Path(trial.run.logs).glob("generation*.log")}
    for job in ran - noted:
        for log in trial.run.logs.glob(f"generation*.{job}*.log"):
            said = log.read_text()
            assert "its launch was killed" in said, said
    return ran - noted
