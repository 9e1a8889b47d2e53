"""CPU of the client per finished request beside bare aiohttp's, in one run: python benchmarks/client_cpu.py

Both ask the same server (a process of its own on this machine that answers at once) with the same body, 64 in flight,
in turns. The figure is this process's own CPU time, so a busy machine moves it little.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from mathmill.generation.client import CompletionClient
from mathmill.generation.pool import PoolClient
from mathmill.generation.times import Gauge
from mathmill.run import Run
from mathmill.serving.address import Address, write_address

REQUESTS, IN_FLIGHT, ROUNDS = 2000, 64, 5
PROMPT = "Solve the problem. " * 60
OPTIONS = {"max_tokens": 512, "temperature": 1.0, "top_p": 0.95, "stop": ["</llm-code>"], "seed": 1}
FIELDS = frozenset({"model", "prompt", *OPTIONS})

SERVER = """
import asyncio, json
from aiohttp import web
ANSWER = json.dumps({"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": "word " * 200,
    "finish_reason": "stop", "stop_reason": None}], "usage": {"prompt_tokens": 300, "completion_tokens": 200}}).encode()
async def complete(request):
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")
async def main():
    app = web.Application(); app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app, access_log=None); await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0); await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def bare(url: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        async def ask() -> None:
            async with session.post(
                f"{url}/v1/completions", json={"model": "m", "prompt": PROMPT, **OPTIONS}
            ) as response:
                assert (await response.json())["choices"][0]["text"]

        await in_turn(ask)


async def ours(url: str) -> None:
    async with CompletionClient(url, "m", fields=FIELDS, most_in_flight=IN_FLIGHT) as client:

        async def ask() -> None:
            assert (await client.complete(PROMPT, **OPTIONS)).text  # type: ignore[arg-type]

        await in_turn(ask)


async def pooled(url: str) -> None:
    """The client of a pool of this one server."""
    with tempfile.TemporaryDirectory(prefix="mathmill-benchmark-") as folder:
        run = Run(Path(folder))
        write_address(run.servers / "1.json", Address(url=url, kind="openai", model="m", pool="m"))
        client = PoolClient(
            run, "m", at_server=Gauge(), most_in_flight=IN_FLIGHT, seeds_needed=False, say=lambda text: None
        )
        async with client:
            await client.first_server()

            async def ask() -> None:
                assert (await client.complete(PROMPT, **OPTIONS)).text  # type: ignore[arg-type]

            await in_turn(ask)


async def in_turn(ask) -> None:  # type: ignore[no-untyped-def]
    async def loop() -> None:
        for _ in range(REQUESTS // IN_FLIGHT):
            await ask()

    await asyncio.gather(*(loop() for _ in range(IN_FLIGHT)))


def cpu_ms(scene, url: str) -> float:  # type: ignore[no-untyped-def]
    begun = time.process_time()
    asyncio.run(scene(url))
    return (time.process_time() - begun) * 1000 / (REQUESTS // IN_FLIGHT * IN_FLIGHT)


def main() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        scenes = (bare, ours, pooled)
        for scene in scenes:  # warm
            cpu_ms(scene, url)
        rounds = [tuple(cpu_ms(scene, url) for scene in scenes) for _ in range(ROUNDS)]
    finally:
        server.terminate()
        server.wait()
    floor, client, pool = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"bare aiohttp      {floor:.3f} ms CPU a request")
    print(f"mathmill's client {client:.3f} ms CPU a request, ratio {client / floor:.2f}")
    print(f"that of a pool    {pool:.3f} ms CPU a request, ratio {pool / floor:.2f}")
    print(f"medians of {ROUNDS} rounds of {REQUESTS} requests, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
