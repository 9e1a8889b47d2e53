"""Trials: `kill -9` of a random process at a random moment of an array on the real Slurm, until it was done often enough."""

import contextlib
import os
import random
import signal
import time
from collections import Counter

import pytest

from mathmill.generation.verify import verify_set
from mathmill.stages.verify import codes_of
from tests.trials.scene import Process, Trial, asked_for, in_queue, processes_of, site, wait_for_end, words

pytestmark = [pytest.mark.trial, pytest.mark.slurm]
KINDS = ("client", "server", "sandbox", "step", "task")
KILLS_A_RUN = 12
LONGEST_PAUSE_S = 3.0


def kill_one(job_id: str, chance: random.Random) -> str:
    """Kill a random process of a random kind, or a whole task at once; the kind, or nothing where none of it runs."""
    processes = processes_of(job_id)
    kind = chance.choice(KINDS)
    if kind == "task":  # but for Slurm's own slurmstepd: without it Slurm takes the node for lost
        tasks = sorted({process.slurm_job for process in processes})
        task = chance.choice(tasks) if tasks else ""
        victims = [process for process in processes if process.slurm_job == task and process.kind != "watcher"]
    else:
        candidates = [process for process in processes if process.kind == kind]
        victims = [chance.choice(candidates)] if candidates else []
    return kind if kill(victims) else ""


def kill(victims: list[Process]) -> bool:
    killed = False
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
            killed = True
    return killed


def test_kills_at_random_moments_lose_no_row_and_double_none(workdir, slurm):
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    wanted, kills = asked_for("kills"), Counter[str]()
    ids = words("some.jsonl", 60)
    flags = ["--cluster", site("test"), "--num_jobs", "3", "--max_tokens", "40", "--max_in_flight", "8"]
    runs = 0
    while kills.total() < wanted:
        trial = Trial(f"kills-{runs}", "some.jsonl", ids, 3, flags)
        most = min(wanted, kills.total() + KILLS_A_RUN)
        while job := trial.launch():
            began = time.monotonic()
            while in_queue(job):
                if kills.total() < most and (kind := kill_one(job, chance)):
                    kills[kind] += 1
                    trial.acknowledge()
                    proof = verify_set(trial.folder, codes_of(trial.run)[0])
                    assert proof.num_wrong == 0, (seed, proof.lines())
                    assert proof.num_made + proof.num_to_come == proof.num_rows == trial.num_rows
                time.sleep(chance.uniform(0.1, LONGEST_PAUSE_S))
                assert time.monotonic() - began < 600, trial.logs()
            wait_for_end(job)
            trial.acknowledge()
        trial.check()
        runs += 1
        print(
            f"seed {seed}: {kills.total()} kills {dict(kills)} in {runs} runs of {trial.num_rows} rows: none lost",
            flush=True,
        )
