"""Answers that are there to cost time or memory, to break a reader, or to be executed."""

import asyncio
import os
from pathlib import Path

import pytest
import yaml

from mathmill.grading import GradingPool
from mathmill.grading.compare import LONGEST_TIGHTENED, grade_quickly

TABLE = Path(__file__).parents[1] / "cases" / "hostile.yaml"
GOLD = ("5", r"\sqrt{2}+x", "y=2x")
MOST_CPU_S = 1.0
MOST_MEMORY_MB = 1024


def answers(mark: Path) -> list[str]:
    rows = yaml.safe_load(TABLE.read_text())
    texts = [row if isinstance(row, str) else row[0] * row[1] + row[2] for row in rows]
    return [text.replace("{mark}", str(mark)) for text in texts]


def pids(pool: GradingPool) -> list[int]:
    assert pool._pool is not None
    return sorted(pool._pool.result()._pool_manager.worker_manager.workers)


def cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("golds", [
    pytest.param(1, marks=pytest.mark.slow, id="each beside one answer"),
    pytest.param(len(GOLD), marks=pytest.mark.trial, id="each beside all answers"),
])  # fmt: skip
def test_hostile_answers_are_cheap_run_nothing_and_cost_no_worker(golds, tmp_path):
    mark = tmp_path / "mark"
    hostile = answers(mark)
    assert len(hostile) >= 150
    pool = GradingPool(workers=1, timeout_s=60, memory_mb=MOST_MEMORY_MB)

    async def grade_each() -> tuple[dict, list[int], list[int], float]:
        for gold in GOLD:
            await pool.grade(gold + "+0x", gold)  # the worker's first comparison warms its caches
        before, costs = pids(pool), {}
        for number, answer in enumerate(hostile):
            beside = GOLD if golds > 1 else GOLD[number % len(GOLD) :][:1]
            for predicted, expected in [(answer, gold) for gold in beside] + [(GOLD[1], answer)]:
                began = cpu_s(before[0])
                verdict = await pool.grade(predicted, expected)
                costs[answer[:60], expected[:60]] = (cpu_s(before[0]) - began, verdict)
        return costs, before, pids(pool), peak_mb(before[0])

    try:
        costs, before, after, memory_mb = asyncio.run(grade_each())
    finally:
        pool.close()
    dearest = max(cost for cost, _ in costs.values())
    print(f"{len(costs)} comparisons of {len(hostile)} answers: at most {dearest:.2f} s of CPU, {memory_mb:.0f} MB")
    assert [pair for pair, (cost, _) in costs.items() if cost > MOST_CPU_S] == []
    assert [pair for pair, (_, verdict) in costs.items() if verdict.rule in ("timeout", "crash")] == []
    assert before == after and memory_mb < MOST_MEMORY_MB
    assert not mark.exists() and not any(tmp_path.iterdir())


def test_no_hostile_answer_makes_the_quick_rules_fail(tmp_path):
    for answer in [*answers(tmp_path / "mark"), "x" * (LONGEST_TIGHTENED + 1)]:
        for gold in GOLD:
            for pair in ((answer, gold), (gold, answer), (answer, answer)):
                grade_quickly(*pair)
    assert not any(tmp_path.iterdir())
