"""Grading in processes that can be killed."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from mathmill.grading import GradingPool, extract_answer
from mathmill.grading import pool as pool_module
from mathmill.records import Grade

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pool():
    pool = GradingPool(workers=1)
    yield pool
    pool.close()


def test_plain_answers_start_no_process():
    pool = GradingPool()
    assert asyncio.run(pool.grade("3.0", "3")) == Grade(is_correct=True, rule="number")
    assert pool._pool is None
    pool.close()


@pytest.mark.slow
def test_symbolic_answers_are_judged_by_a_worker_and_the_loop_goes_on(pool):
    async def ticks_meanwhile():
        task = asyncio.ensure_future(pool.grade(r"\sqrt{50}", r"5\sqrt{2}"))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return await task, ticks

    verdict, ticks = asyncio.run(ticks_meanwhile())
    assert verdict == Grade(is_correct=True, rule="symbolic")
    assert ticks >= 1


def test_identical_pairs_are_asked_once(pool, monkeypatch):
    async def thousand():
        return await asyncio.gather(*[pool.grade(r"\sqrt{8}", r"2\sqrt{2}") for _ in range(1000)])

    asked = []
    schedule = pool_module.ProcessPool.schedule
    monkeypatch.setattr(
        pool_module.ProcessPool,
        "schedule",
        lambda self, function, args, **more: asked.append(args[:2]) or schedule(self, function, args=args, **more),
    )
    assert all(verdict.is_correct for verdict in asyncio.run(thousand()) + asyncio.run(thousand()))
    assert asked == [(r"\sqrt{8}", r"2\sqrt{2}")]


def _sleeps(predicted: str, expected: str, policy: str) -> Grade:
    """A comparison that hangs, dies or asks for too much memory, as its answer says."""
    if predicted == "hang":
        time.sleep(60)
    if predicted == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if predicted == "eat":
        bytearray(4 << 30)
    return Grade(is_correct=True, rule="symbolic")


@pytest.mark.slow
def test_a_worker_that_hangs_dies_or_eats_memory_is_replaced_and_nobody_is_called_wrong(monkeypatch):
    monkeypatch.setattr(pool_module, "grade_slowly", _sleeps)
    pool = GradingPool(workers=1, timeout_s=0.7)
    try:
        rules = [asyncio.run(pool.grade(answer, "x+1")) for answer in ("hang", "die", "eat", "good")]
        assert [(verdict.is_correct, verdict.rule) for verdict in rules] == [
            (None, "timeout"), (None, "crash"), (None, "crash"), (True, "symbolic"),
        ]  # fmt: skip
    finally:
        pool.close()


@pytest.mark.slow
def test_a_pool_whose_forking_process_was_killed_is_made_anew():
    async def kill_and_go_on(pool: GradingPool) -> list[str]:
        await pool.grade("x+x", "2x")
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        await asyncio.sleep(1)
        return [(await pool.grade(f"x+{number}", f"{number}+x")).rule for number in range(4)]

    with contextlib.closing(GradingPool(workers=2)) as pool:
        assert asyncio.run(kill_and_go_on(pool)) == ["symbolic"] * 4


@pytest.mark.slow
def test_a_start_that_is_killed_costs_nobody_who_waits_a_verdict():
    async def kill_the_start(pool: GradingPool) -> list[str]:
        asked = [asyncio.ensure_future(pool.grade(f"x+{number}", f"{number}+x")) for number in range(200)]
        while (pid := forkserver._forkserver._forkserver_pid) is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        return [verdict.rule for verdict in await asyncio.gather(*asked)]

    forkserver._forkserver._stop()
    with contextlib.closing(GradingPool(workers=2)) as pool:
        assert asyncio.run(kill_the_start(pool)) == ["symbolic"] * 200


@pytest.mark.slow
def test_the_loop_goes_on_while_the_workers_start():
    async def ticks_before_the_start(pool: GradingPool) -> int:
        task, ticks = asyncio.ensure_future(pool.grade("x+x", "2x")), 0
        while pool._pool is None or not pool._pool.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert (await task).rule == "symbolic"
        return ticks

    forkserver._forkserver._stop()  # as in a process that has none yet: its start takes a second or more
    with contextlib.closing(GradingPool(workers=1)) as pool:
        assert asyncio.run(ticks_before_the_start(pool)) > 10


PARENT = """
import asyncio, sys
from mathmill.grading import GradingPool
if __name__ == "__main__":
    pool = GradingPool(workers=2)
    asyncio.run(pool.grade("x+x", "2x"))
    print(" ".join(str(worker) for worker in pool._pool.result()._pool_manager.worker_manager.workers), flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()
"""


def _start_parent(tmp_path: Path, mode: str) -> tuple[subprocess.Popen, list[int]]:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), mode],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def _all_gone(pids: list[int], within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(map(_runs, pids)):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    """Whether the process is there and is more than an entry that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    parent, workers = _start_parent(tmp_path, "wait")
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert _all_gone(workers)


@pytest.mark.slow
def test_a_program_that_forgets_to_close_its_pool_still_ends(tmp_path):
    parent, workers = _start_parent(tmp_path, "end")
    parent.communicate(timeout=20)
    assert parent.returncode == 0 and _all_gone(workers)


@pytest.mark.parametrize(("model", "published"), [("tora-70b-v1.0", 84.3), ("tora-code-34b-v1.0", 80.7)])
@pytest.mark.parametrize("source", ["predicted_answer", "trace"])
def test_the_published_accuracy_of_recorded_solutions_comes_out(dev_data, pool, model, published, source):
    with gzip.open(dev_data / "recorded" / "tora-gsm8k" / f"{model}.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    answers = [extract_answer(row["trace"]) if source == "trace" else row["predicted_answer"] for row in rows]

    async def verdicts():
        pairs = zip(answers, rows, strict=True)
        return await asyncio.gather(*[pool.grade(answer, row["expected_answer"]) for answer, row in pairs])

    right = sum(verdict.is_correct is True for verdict in asyncio.run(verdicts()))
    assert abs(100 * right / len(rows) - published) <= 1


def test_recorded_labels_are_agreed_with(dev_data, pool):
    with gzip.open(dev_data / "recorded" / "gsm8k-model-solutions" / "solutions.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]

    async def disagreements() -> list[tuple]:
        found = []
        for row in rows:
            answer = row["solution"].rsplit("A:", 1)[-1].strip() if "A:" in row["solution"] else None
            verdict = await pool.grade(answer, row["expected_answer"])
            if verdict.is_correct != row["is_correct"]:
                found.append((answer, row["expected_answer"], row["is_correct"], verdict))
        return found

    found = asyncio.run(disagreements())
    print(f"{len(rows):,} labelled solutions, {len(found)} judged otherwise", *found, sep="\n")
    assert len(found) <= 0.005 * len(rows)
