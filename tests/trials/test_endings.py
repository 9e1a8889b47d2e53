"""Trials: preemption, the time limit and a lost node, on the real Slurm: the run completes by itself and loses no row."""

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mathmill.generation.progress import set_progress
from mathmill.generation.sets import seed_of
from tests.trials.scene import (
    Trial,
    asked_for,
    attempts,
    in_queue,
    pipeline,
    replaying,
    site,
    wait_for_end,
    wait_until,
    words,
)

pytestmark = [pytest.mark.trial, pytest.mark.slurm]
IN_FLIGHT = 4
MOST_AT_WORK = int(IN_FLIGHT * 1.25) + 2
"""Samples that a worker has begun at a time."""
RUNS_AT_ONCE = 4
END_S = 1500
"""For all starts of a run; a busy machine takes long to start a task."""


def begin(name: str, number: int, url: str, cluster: str, num_problems: int, *more: str) -> tuple[Trial, str]:
    ids = words("all.jsonl", num_problems)
    flags = ["--cluster", cluster, "--num_jobs", "2", "--max_in_flight", str(IN_FLIGHT), "--seed", str(number), *more]
    flags += ["--server", "openai", "--server_address", url, "--prompt", "text_base"]  # without code: tasks start fast
    trial = Trial(f"{name}-{number}", "all.jsonl", ids, 4, flags)
    return trial, trial.launch()


def finish(trial: Trial, job: str, log: Path, interruption: str) -> int:
    """Wait for the end that the run finds by itself, prove it, and count the starts that were interrupted."""
    wait_for_end(job, END_S)
    # the accounting hears of the ends a little later; the latest start of each task comes last
    wait_until(lambda: not {"RUNNING", "PENDING"} & set(dict(attempts(job)).values()), 120, "the accounting")
    states = attempts(job)
    assert set(dict(states).values()) == {"COMPLETED"}, (states, trial.logs())
    trial.check()
    assert trial.num_submitted == 1
    counts = Counter(state for _, state in states)
    begun_again = sum(samples_begun(trial, log).values()) - trial.num_rows
    interrupted = counts.total() - counts["COMPLETED"]
    assert begun_again <= interrupted * MOST_AT_WORK, (begun_again, counts)
    print(f"{trial.name}: {dict(counts)}, {begun_again} of {trial.num_rows} samples begun again", flush=True)
    return counts[interruption]


def samples_begun(trial: Trial, log: Path) -> Counter[int]:
    """How often each sample of the run was begun, by its seed in the server's log."""
    sample_set = trial.folder.load()
    ours = {seed_of(sample_set, problem, n) for problem in trial.problem_ids for n in range(trial.num_samples)}
    asked = (msgspec.json.decode(line) for line in log.read_bytes().splitlines())
    return Counter(one["seed"] for one in asked if one["seed"] in ours and one["prompt"].endswith("Solution:\n"))


def until_interrupted_often(
    kind: str, cluster: str, state: str, interrupt: Callable[[], None], num_problems: int, *more: str
) -> None:
    """Rounds of several runs side by side, until so many of them were interrupted and completed by themselves."""
    wanted, done, number = asked_for(kind), 0, 0
    words("all.jsonl", num_problems)
    log = Path("requests.jsonl").resolve()
    with replaying("all.jsonl", 1.0, log) as url:
        while done < wanted:
            started = [begin(kind, number + place, url, cluster, num_problems, *more) for place in range(RUNS_AT_ONCE)]
            number += len(started)
            for trial, _ in started:
                wait_until(lambda trial=trial: settled(trial) >= 8, 600, f"{trial.name}'s first rows")
                trial.acknowledge()
            interrupt()
            done += sum(finish(trial, job, log, state) > 0 for trial, job in started)
            print(f"{done} of {number} runs were interrupted ({state}) and completed by themselves", flush=True)


def nodes_in_use() -> list[str]:
    used = subprocess.run(["squeue", "-h", "-t", "R", "-o", "%N"], capture_output=True, text=True, check=True)
    return sorted(set(used.stdout.split()))


def settled(trial: Trial) -> int:
    progress = set_progress(trial.folder)
    return progress.num_done + progress.num_in_parts


def test_preempted_runs_complete_by_themselves(workdir, slurm):
    def preempt() -> None:
        nodes = ",".join(nodes_in_use())
        slurm.call("srun", "--partition=batch", f"--nodelist={nodes}", "--exclusive", "sleep", "1")

    cluster = site("preempt", partitions={"gpu": "preempt", "cpu": "preempt"}, cpus=8)
    until_interrupted_often("preemptions", cluster, "PREEMPTED", preempt, 60)


def test_runs_at_their_time_limit_complete_by_themselves(workdir, slurm):
    cluster = site("short", partitions={"gpu": "short", "cpu": "short"}, time_limit="1:00", stop_before="0:30", cpus=8)
    until_interrupted_often("limits", cluster, "REQUEUED", lambda: None, 40)


def test_runs_that_lose_a_node_complete_by_themselves(workdir, slurm):
    def lose() -> None:
        lost = nodes_in_use()[:2]
        for node in lost:
            slurm.fail(node)
        wait_until(
            lambda: all("down" in slurm.call("sinfo", "-h", "-n", node, "-o", "%T") for node in lost), 180, "the loss"
        )
        for node in lost:
            slurm.resume(node)
        wait_until(
            lambda: all("down" not in slurm.call("sinfo", "-h", "-n", node, "-o", "%T") for node in lost),
            180,
            "the return",
        )

    until_interrupted_often("lost_nodes", site("test", cpus=8), "NODE_FAIL", lose, 60)


def test_a_cancelled_run_ends_within_seconds_and_stays_dead(workdir, slurm):
    words("all.jsonl", 40)
    with replaying("all.jsonl", 1.0) as url:
        for number, command in enumerate(["cancel.py", "scancel"] * (asked_for("cancels") // 2)):
            trial, job = begin("cancel", number, url, site("test"), 40)
            wait_until(lambda trial=trial: settled(trial) >= 4, 120, "the first rows")
            began = time.monotonic()
            if command == "scancel":
                slurm.call("scancel", job)
            else:
                assert pipeline("cancel", trial.name).returncode == 0
            wait_for_end(job, 60)
            took = time.monotonic() - began
            trial.acknowledge()
            assert took < 15, f"{command} took {took:.1f} s"
            time.sleep(12)  # a task that was queued again would start by now
            assert {state for _, state in attempts(job)} == {"CANCELLED"}, attempts(job)
            assert not in_queue(job)
            print(f"{trial.name}: {command} ended both tasks in {took:.1f} s", flush=True)
            if number < 2:
                wait_for_end(trial.launch())
                trial.check()
