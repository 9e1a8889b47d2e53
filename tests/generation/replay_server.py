"""A server of `/v1/completions` that replays recorded solutions: replay_server.py RECORDED.jsonl[.gz] PORT_FILE [DELAY_S [LOG]]

Every line of the file holds `problem` and `trace` (a solution with ```python blocks and the ```output an interpreter gave).
It is asked with the project's code_sft prompt; it answers with the recorded text up to the end of the next block of code,
so that the code runs in our sandbox and not in the record. Texts for unknown prompts depend on the seed, as a model's do.
A line may have a `poison`: what the server says to this problem instead. LOG gets the body of every request, a line each.
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


POISONS = {
    "too_long": (400, "This model's maximum context length is 64 tokens. However, you requested 99 tokens."),
    "refused": (422, "this prompt is not for me"),
    "garbage": (200, '{"choices": [{"text": "half an ans'),
}
"""What a row meets that fails for its own reasons: status and body."""


def read_recorded(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Rounds and poisons by problem."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rounds = {row["problem"]: rounds_of(row["trace"]) for row in rows}
    return rounds, {row["problem"]: row["poison"] for row in rows if "poison" in row}


def problem_of(asked: dict) -> tuple[str, str]:
    """The problem of a prompt, and what was written of its solution."""
    problem, _, written = asked["prompt"].rpartition("\nProblem:\n")[2].partition("\n\nSolution:\n")
    return problem, written


def answer_to(asked: dict, rounds: dict[str, list[str]]) -> dict:
    problem, written = problem_of(asked)
    number = written.count("</llm-code-output>")
    recorded = rounds.get(problem)
    text = f"a text of seed {asked.get('seed')}" if recorded is None else recorded[number]
    stopped = recorded is not None and number < len(recorded) - 1
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", "stop_reason": CODE_END if stopped else None}],
        "usage": {"prompt_tokens": len(asked["prompt"]) // 4, "completion_tokens": max(1, len(text) // 4)},
    }


async def serve(recorded: Path, port_file: Path, delay_s: float, log: Path | None) -> None:
    rounds, poisons = read_recorded(recorded)
    logged = log.open("a", buffering=1) if log else None

    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        if logged:
            logged.write(json.dumps(asked, sort_keys=True) + "\n")
        await asyncio.sleep(delay_s)
        if poison := poisons.get(problem_of(asked)[0]):
            status, text = POISONS[poison]
            return web.Response(status=status, text=text)
        return web.json_response(answer_to(asked, rounds))

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
    _, recorded, port_file, *more = sys.argv
    delay = float(more[0]) if more else 0.0
    asyncio.run(serve(Path(recorded), Path(port_file), delay, Path(more[1]) if len(more) > 1 else None))
