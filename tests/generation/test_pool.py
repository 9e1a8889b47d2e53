"""The client of a pool against real HTTP servers that come, go, hang and lie: every request is answered, none by a stranger."""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import pytest
from aiohttp import web

from mathmill.errors import UserError
from mathmill.generation.client import RequestRefusedError, ServerLostError
from mathmill.generation.pool import PoolClient, end_pool_when_done
from mathmill.generation.times import Gauge
from mathmill.run import Run
from mathmill.serving.address import Address, write_address
from mathmill.serving.shared import Gone

PROBE = "The"


@dataclass
class Toy:
    """A server whose text is its own name and the seed."""

    name: str
    run: Run
    delay_s: float = 0.01
    broken: bool = False
    blind: bool = False
    """To seeds: every text is the same."""
    answered: Counter[str] = field(default_factory=Counter)
    refused: str = ""
    runner: web.AppRunner | None = None

    @property
    def path(self):
        return self.run.servers / f"{self.name}.json"

    async def complete(self, request):
        asked = json.loads(await request.read())
        if asked["model"] != self.name:
            return web.json_response({"error": "no such model"}, status=404)
        is_probe = asked["prompt"] == PROBE
        if not is_probe:
            await asyncio.sleep(self.delay_s)
        if self.broken or asked["prompt"] == self.refused:
            return web.Response(status=500)
        self.answered["probe" if is_probe else "text"] += 1
        text = f"{self.name} {0 if self.blind else asked['seed']}"
        choices = [{"text": text, "finish_reason": "stop"}]
        return web.json_response({"choices": choices, "usage": {"completion_tokens": 3}})

    async def start(self, announce=True, model=None):
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.address = Address(url=f"http://127.0.0.1:{port}", kind="openai", model=model or self.name, pool="toy")
        if announce:
            write_address(self.path, self.address)

    async def die(self):
        """The process is gone; its file stays."""
        await self.runner.cleanup()

    def stop_beating(self):
        long_ago = time.time() - 3600
        os.utime(self.path, (long_ago, long_ago))


@contextlib.asynccontextmanager
async def pool(run, *toys, **options):
    """These servers, and a client that follows the folder."""
    said = []
    for toy in toys:
        await toy.start()
    client = PoolClient(run, "toy", at_server=Gauge(), say=said.append, **{"wait_s": 5.0, "patience_s": 3.0, **options})
    client.said = said
    try:
        async with client:
            yield client
    finally:
        for toy in toys:
            await toy.die()


def ask(client, seed=7, prompt="say"):
    return client.complete(prompt, max_tokens=8, temperature=1.0, top_p=0.9, stop=["."], seed=seed)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("mathmill.generation.pool.LOOK_S", 0.05)
    run = Run(tmp_path / "toy")
    run.servers.mkdir(parents=True)
    run.jobs.mkdir()
    return run


def toys(run, count, **options):
    return [Toy(f"7_{number}", run, **options) for number in range(count)]


def test_all_live_servers_share_the_load_and_a_text_says_what_is_known_of_its_server(run):
    async def scene():
        mine = toys(run, 3)
        async with pool(run, *mine) as client:
            while sum(one.ready for one in client.members.values()) < 3:
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*(ask(client, seed) for seed in range(300)))
            assert [one.text.split()[1] for one in answers] == [str(seed) for seed in range(300)]
            assert {one.source.seed_honoured for one in answers} == {True}
            shares = [toy.answered["text"] for toy in mine]
            assert sum(shares) == 300 and min(shares) > 60, shares
            assert client.num_tokens == 900 and set(client.busy_s()) == {"7_0", "7_1", "7_2"}

    asyncio.run(scene())


@pytest.mark.slow
def test_what_is_in_flight_at_a_server_that_dies_is_answered_by_another(run):
    async def scene():
        first, second = toys(run, 2, delay_s=0.3)
        async with pool(run, first, second) as client:
            await asyncio.gather(*(ask(client, seed) for seed in range(8)))
            asked = [asyncio.create_task(ask(client, seed)) for seed in range(40)]
            await asyncio.sleep(0.1)
            await first.die()
            answers = await asyncio.gather(*asked)
            assert [one.text.split()[1] for one in answers] == [str(seed) for seed in range(40)]
            assert sum(client.failures.values()) > 0
            assert {(await ask(client)).text for _ in range(5)} == {"7_1 7"}

    asyncio.run(scene())


def test_what_hangs_at_a_server_whose_heart_stopped_goes_elsewhere_and_a_new_one_is_used(run):
    async def scene():
        hanging, fresh = Toy("7_0", run, delay_s=600), Toy("7_1", run)
        async with pool(run, hanging, lease_s=30) as client:
            asked = [asyncio.create_task(ask(client, seed)) for seed in range(10)]
            await asyncio.sleep(0.3)
            await fresh.start()
            hanging.stop_beating()
            answers = await asyncio.wait_for(asyncio.gather(*asked), 5)
            assert {one.text.split()[0] for one in answers} == {"7_1"}
            assert list(client.members) == ["7_1"]
            assert any("has not beaten" in line for line in client.said)
            await fresh.die()

    asyncio.run(scene())


@pytest.mark.slow
def test_a_server_that_withdraws_gets_nothing_new_and_finishes_what_it_has(run):
    async def scene():
        leaving, staying = toys(run, 2, delay_s=0.5)
        async with pool(run, leaving, staying) as client:
            asked = [asyncio.create_task(ask(client, seed)) for seed in range(10)]
            await asyncio.sleep(0.2)
            leaving.path.unlink()
            await asyncio.sleep(0.2)
            later = await asyncio.gather(*(ask(client) for _ in range(5)))
            assert {one.text.split()[0] for one in later} == {"7_1"}
            await asyncio.gather(*asked)
            assert not client.failures

    asyncio.run(scene())


def test_a_server_that_was_started_again_is_another_one(run):
    async def scene():
        old, new = Toy("7_0", run), Toy("8_0", run)
        async with pool(run, old) as client:
            assert (await ask(client)).text == "7_0 7"
            await old.die()
            await new.start(announce=False)
            write_address(old.path, new.address)  # the same task of the same array, queued again
            assert (await asyncio.wait_for(ask(client), 5)).text == "8_0 7"
            await new.die()

    asyncio.run(scene())


@pytest.mark.slow
def test_a_server_that_fails_at_once_draws_no_requests_to_itself(run):
    async def scene():
        good, bad = toys(run, 2, delay_s=0.05)
        async with pool(run, good, bad, attempts=4) as client:
            await asyncio.gather(*(ask(client, seed) for seed in range(20)))
            bad.broken, bad.delay_s = True, 0.0
            answers = await asyncio.gather(*(ask(client, seed) for seed in range(200)))
            assert {one.text.split()[0] for one in answers} == {"7_0"}
            assert client.failures["status 500"] <= 110, "those that were there when it broke, and few more"
            bad.broken = False
            while not client.members["7_1"].ready:
                await asyncio.sleep(0.05)
            answers = await asyncio.gather(*(ask(client, seed) for seed in range(200)))
            assert {one.text.split()[0] for one in answers} == {"7_0", "7_1"}

    asyncio.run(scene())


@pytest.mark.slow
def test_a_request_that_every_server_refuses_is_the_requests_own_fault(run):
    async def scene():
        mine = toys(run, 2)
        for toy in mine:
            toy.refused = "bad"
        async with pool(run, *mine, attempts=3) as client:

            async def others():
                while True:
                    await asyncio.gather(ask(client), ask(client))

            busy = asyncio.create_task(others())
            with pytest.raises(RequestRefusedError, match="while others were answered"):
                await ask(client, prompt="bad")
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)

    asyncio.run(scene())


def test_a_stranger_on_a_servers_port_is_never_asked_for_a_row(run):
    async def scene():
        mine, stranger = Toy("7_0", run), Toy("stranger", run)
        await stranger.start(announce=False)
        lie = {**asdict(stranger.address), "model": "7_1"}
        write_address(run.servers / "7_1.json", Address(**lie))
        other_pool = {**asdict(stranger.address), "pool": "another model"}
        write_address(run.servers / "7_2.json", Address(**other_pool))
        async with pool(run, mine) as client:
            answers = await asyncio.gather(*(ask(client, seed) for seed in range(50)))
            assert {one.text.split()[0] for one in answers} == {"7_0"}
            assert not stranger.answered
            assert set(client.members) == {"7_0", "7_1"}
        await stranger.die()

    asyncio.run(scene())


@pytest.mark.slow
def test_a_server_that_is_blind_to_seeds_ends_the_run_and_is_left_out_beside_others(run):
    async def scene():
        async with pool(run, Toy("7_0", run, blind=True)) as client:
            with pytest.raises(UserError, match="the same text for five different seeds"):
                await client.first_server()
        (run.servers / "7_0.json").unlink()
        good, blind = Toy("7_1", run), Toy("7_2", run, blind=True)
        async with pool(run, good) as client:
            await client.first_server()
            await blind.start()
            while not any("is left out" in line for line in client.said):
                await asyncio.sleep(0.02)
            answers = await asyncio.gather(*(ask(client, seed) for seed in range(50)))
            assert {one.text.split()[0] for one in answers} == {"7_1"}
            await blind.die()

    asyncio.run(scene())


def test_the_wait_for_a_server_ends_at_its_deadline_and_says_what_to_look_at(run):
    async def scene():
        async with pool(run, wait_s=0.3) as client:
            with pytest.raises(ServerLostError, match=r"no server was there for .* minutes.*status\.py toy"):
                await client.first_server()

    asyncio.run(scene())


def test_servers_that_live_and_answer_nobody_are_not_waited_for_as_long_as_none_is(run):
    async def scene():
        async with pool(run, Toy("7_0", run, broken=True), patience_s=0.5, wait_s=3600) as client:
            with pytest.raises(ServerLostError, match="live and have answered nobody for 0 s"):
                await client.first_server()

    asyncio.run(scene())


def launched(run, name, num_servers):
    (run.jobs / f"{name}.json").write_text(json.dumps({"server": {"pool": "toy", "num_servers": num_servers}}))
    with (run.jobs / "submitted.jsonl").open("a") as lines:
        lines.write(json.dumps({"name": name}) + "\n")


def test_when_all_servers_are_gone_for_good_nobody_waits_and_the_log_is_named(run):
    launched(run, "servers", 2)

    def gone(job):
        reason = Gone(pool="toy", launch="servers", reason="out of memory on purpose", log=f"logs/{job}.log")
        (run.servers / f"{job}.gone").write_text(json.dumps(asdict(reason)))

    async def scene():
        gone("7_0")
        async with pool(run, wait_s=3600) as client:
            waiting = asyncio.create_task(client.first_server())
            await asyncio.sleep(0.3)
            assert not waiting.done(), "the other one may come"
            gone("7_1")
            with pytest.raises(ServerLostError, match=r"all servers are gone: out of memory on purpose; .*7_1\.log"):
                await waiting

    asyncio.run(scene())


def test_a_launch_that_comes_while_the_last_worker_looks_keeps_its_servers(run):
    launched(run, "servers", 2)

    def is_done():
        launched(run, "servers-2", 1)  # another launch, whose samples we do not see
        return True

    assert end_pool_when_done(run, "toy", is_done)
    assert [path.name for path in run.servers.glob("*.ended")] == ["servers.ended"]
    assert not end_pool_when_done(run, "toy", lambda: False)
    assert not (run.servers / "servers-2.ended").exists()
