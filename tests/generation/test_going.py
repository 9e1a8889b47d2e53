"""Samples under way: none fails unheard, and an end wakes who waits."""

import asyncio
from types import SimpleNamespace

import pytest

from mathmill.generation.worker import Going, Worker
from tests.generation.making import problems_like


async def fail(when: asyncio.Event) -> None:
    await when.wait()
    raise OSError("the disk")


def test_a_failure_is_raised_by_the_next_wait_or_look_and_others_are_cancelled():
    async def scene():
        now, never = asyncio.Event(), asyncio.Event()
        async with Going() as going:
            going.begin(fail(now))
            going.begin(fail(never))
            now.set()
            with pytest.raises(OSError, match="the disk"):
                await going.one_ended()
            with pytest.raises(OSError, match="the disk"):
                going.check()
            assert len(going) == 1
        assert len(going) == 0

    asyncio.run(scene())


def test_a_look_wakes_who_waits_without_an_end():
    async def scene():
        async with Going() as going:
            going.begin(fail(asyncio.Event()))
            asyncio.get_running_loop().call_later(0.01, going.look)
            await going.one_ended()
            assert len(going) == 1

    asyncio.run(scene())


def test_samples_that_all_fail_while_a_shard_without_rows_is_closed_do_not_end_the_work_well(monkeypatch):
    """The shard in flight would be left unfinished by a worker that ends with exit code 0."""
    problems = problems_like(7)  # as many as are begun at once
    all_failed = asyncio.Event()
    in_flight = SimpleNamespace(limit=4)
    worker = Worker(None, None, [], None, SimpleNamespace(in_flight=in_flight), None)
    full, empty = (SimpleNamespace(left=left) for left in ({"rows"}, set()))
    shards = iter([empty, None])

    async def settle(self, opened, problem, sample_index):
        if problem.problem_id not in (problems[0].problem_id, problems[1].problem_id):
            await fail(all_failed)

    async def close(self, opened):
        all_failed.set()
        await asyncio.sleep(0.05)

    monkeypatch.setattr(Worker, "_settle", settle)
    monkeypatch.setattr(Worker, "close", close)
    monkeypatch.setattr(Worker, "claim", lambda self: next(shards, None))
    monkeypatch.setattr(
        "mathmill.generation.worker.samples_left",
        lambda opened: [(opened, problem, 0) for problem in problems] if opened.left else [],
    )
    with pytest.raises(OSError, match="the disk"):
        asyncio.run(worker._work_from(full))
