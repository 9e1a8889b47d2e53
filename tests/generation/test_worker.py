"""The worker as the process that a job starts: run twice, beside itself, killed, drained and told to end; every row once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mathmill.generation.progress import set_progress
from mathmill.generation.summary import solutions
from tests.generation.making import problems_like, run_with

REPLAY = Path(__file__).parent / "replay_server.py"


def wait_until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@contextlib.contextmanager
def process(*arguments, **options):
    started = subprocess.Popen([sys.executable, *map(str, arguments)], **options)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def stage(folder, num_problems=12, delay_s=0.0, log=False, poisons=None, **options):
    """A run of toy problems with a server and a sandbox; yields what starts a worker.

    `log`: requests.jsonl has every request. `poisons`: place of a problem -> how the server fails it.
    """
    problems = problems_like(num_problems)
    run, made = run_with(folder, problems, **options)
    recorded, port = folder / "recorded.jsonl", folder / "port"
    recorded.write_text(
        "".join(
            json.dumps(
                {
                    "problem": p.problem,
                    "trace": f"```python\n{n} + {n}\n```\n```output\n?\n```\nIt is \\boxed{{{2 * n}}}.",
                    **({"poison": poisons[n]} if poisons and n in poisons else {}),
                }
            )
            + "\n"
            for n, p in enumerate(problems)
        )
    )
    node = folder / "node"
    node.mkdir(mode=0o700)
    job = run.jobs / "generate.json"
    environment = {
        **os.environ,
        "MATHMILL_RUN": str(run.folder),
        "MATHMILL_NODE_DIR": str(node),
        "PYTHONPATH": str(Path.cwd()),
    }
    requests = [folder / "requests.jsonl"] if log else []
    with (
        process(REPLAY, recorded, port, delay_s, *requests),
        process("-m", "mathmill.sandbox", "serve", env=environment),
    ):
        wait_until(lambda: port.exists() and (node / "sandbox" / "socket").exists())
        run.jobs.mkdir()
        section = {
            "model": "toy",
            "model_path": "",
            "server_address": f"http://127.0.0.1:{port.read_text()}",
            "server_model": "recorded",
        }
        job.write_text(json.dumps({"generation": section}))

        def worker(task=0, tasks=1):
            ours = {
                **environment,
                "MATHMILL_JOB": f"7_{task}",
                "MATHMILL_TASK": str(task),
                "MATHMILL_TASKS": str(tasks),
            }
            return process("-m", "mathmill.generation", job, env=ours, stderr=subprocess.PIPE, text=True)

        worker.environment = {**environment, "MATHMILL_JOB": "7_0"}
        yield made, worker


def keys_of(folder):
    return sorted((row.problem_id, row.sample_index) for row in solutions(folder))


def all_keys(num_problems, num_samples=2):
    return sorted((f"toy/test/{p}", s) for p in range(num_problems) for s in range(num_samples))


@pytest.mark.slow
def test_a_worker_makes_every_row_once_and_a_second_one_finds_nothing_to_do(tmp_path):
    with stage(tmp_path) as (folder, worker):
        with worker() as first:
            said = first.communicate()[1]
        assert first.returncode == 0, said
        assert keys_of(folder) == all_keys(12)
        assert all(row.is_correct and row.code_blocks[0].output == row.predicted_answer for row in solutions(folder))
        before = {path.name: path.stat().st_mtime_ns for path in folder.folder.glob("p0*.jsonl")}
        with worker() as second:
            assert second.wait() == 0
        assert {path.name: path.stat().st_mtime_ns for path in folder.folder.glob("p0*.jsonl")} == before
        assert not list(folder.parts.iterdir())


@pytest.mark.slow
def test_workers_beside_each_other_share_the_shards(tmp_path):
    with stage(tmp_path, num_problems=40, delay_s=0.05) as (folder, worker), contextlib.ExitStack() as stack:
        workers = [stack.enter_context(worker(task, 3)) for task in range(3)]
        assert [one.wait() for one in workers] == [0, 0, 0]
        assert keys_of(folder) == all_keys(40)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_worker_loses_no_journaled_row_and_the_next_one_goes_on_from_there(tmp_path, signum, code):
    with stage(tmp_path, num_problems=40, delay_s=0.1, problems_per_shard=40) as (folder, worker):
        with worker() as killed:
            wait_until(lambda: set_progress(folder).num_in_parts >= 10)
            killed.send_signal(signum)
            assert killed.wait() == code
        kept = set_progress(folder).num_in_parts
        rows = {
            line
            for part in folder.parts.iterdir()
            for line in part.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        }
        with worker() as again:
            said = again.communicate()[1]
        assert again.returncode == 0, said
        assert f"{kept} of 80 rows were there before" in said
        assert keys_of(folder) == all_keys(40)
        assert rows <= set((folder.folder / "p00000-00039.s000-001.jsonl").read_bytes().splitlines(keepends=True))


@pytest.mark.slow
def test_a_drained_worker_says_that_work_is_left(tmp_path):
    with stage(tmp_path, num_problems=60, delay_s=0.1) as (folder, worker):
        with worker() as drained:
            wait_until(lambda: set_progress(folder).num_in_parts >= 4)
            drained.send_signal(signal.SIGUSR2)
            assert drained.wait() == 75
        with worker() as again:
            assert again.wait() == 0
        assert keys_of(folder) == all_keys(60)
