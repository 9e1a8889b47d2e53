"""A server of `/v1/completions` that replays recorded solutions: python replay_server.py RECORDED.jsonl[.gz] PORT_FILE [DELAY_S]

Every line of the file holds `problem` and `trace` (a solution with ```python blocks and the ```output an interpreter gave).
It is asked with the project's code_sft prompt; it answers with the recorded text up to the end of the next block of code,
so that the code runs in our sandbox and not in the record. Texts for unknown prompts depend on the seed, as a model's do.
"""

import asyncio
import gzip
import json
import re
import sys
from pathlib import Path

from aiohttp import web

CODE_END = "</llm-code>"
BLOCK = re.compile(r"```python\n(.*?)```\s*```output\n.*?```\n?", re.DOTALL)


def rounds_of(trace: str) -> list[str]:
    """What a model would write in each round: all but the last end where their block of code ends."""
    pieces = BLOCK.split(trace)
    texts, codes = pieces[::2], pieces[1::2]
    return [f"{text}<llm-code>\n{code}" for text, code in zip(texts, codes, strict=False)] + [texts[-1]]


def read_rounds(path: Path) -> dict[str, list[str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        return {row["problem"]: rounds_of(row["trace"]) for row in map(json.loads, lines)}


def answer_to(asked: dict, rounds: dict[str, list[str]]) -> dict:
    problem, _, written = asked["prompt"].rpartition("\nProblem:\n")[2].partition("\n\nSolution:\n")
    number = written.count("</llm-code-output>")
    recorded = rounds.get(problem)
    text = f"a text of seed {asked.get('seed')}" if recorded is None else recorded[number]
    stopped = recorded is not None and number < len(recorded) - 1
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", "stop_reason": CODE_END if stopped else None}],
        "usage": {"prompt_tokens": len(asked["prompt"]) // 4, "completion_tokens": max(1, len(text) // 4)},
    }


async def serve(rounds: dict[str, list[str]], port_file: Path, delay_s: float) -> None:
    async def complete(request: web.Request) -> web.Response:
        await asyncio.sleep(delay_s)
        return web.json_response(answer_to(await request.json(), rounds))

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "recorded"}]})

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
    asyncio.run(
        serve(read_rounds(Path(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    )
