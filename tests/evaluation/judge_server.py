"""A judge that is a rule, over real HTTP: python judge_server.py PORT_FILE

It says yes where two answers have the same letters and digits, whatever the signs between them. Asked about an answer with
`maybe` it says nothing clear; where the first answer is `one way` it contradicts itself from one direction to the other.
"""

import asyncio
import re
import sys
from pathlib import Path

from aiohttp import web

ASKED = re.compile(r"First answer:\n(.*?)\n\nSecond answer:\n(.*?)\n\nGive", re.DOTALL)


def opinion(first: str, second: str) -> str:
    if "maybe" in first + second:
        return "Who knows?"
    same = re.sub(r"\W", "", first.lower()) == re.sub(r"\W", "", second.lower()) or first == "one way"
    return f"Judgement: No, or is it?\nI compared them.\nJudgement: {'Yes' if same else 'No'}"


async def complete(request: web.Request) -> web.Response:
    asked = await request.json()
    found = ASKED.search(asked["prompt"])
    text = opinion(*found.groups()) if found else "hello"
    usage = {"prompt_tokens": 1, "completion_tokens": 1 + len(text) // 4}
    return web.json_response({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": usage})


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "rule"}]})


async def serve(port_file: Path) -> None:
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    beside = port_file.with_suffix(".new")
    beside.write_text(str(site._server.sockets[0].getsockname()[1]))  # type: ignore[union-attr]
    beside.rename(port_file)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
