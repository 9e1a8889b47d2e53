"""Serves all recorded solutions as models of `/v1/completions`: python -m tests.evaluation.recorded_server FOLDER PORT_FILE

Each recording is a model by its name (`tora-70b-v1.0`, `175b_verification`, `gsm8k-fewshot`, …); `committee` is all of those
that solve a problem, one by one as the seed says, which gives samples that differ as a model's do. Problems are found in the
project's code_sft prompt. Code stops at its end tag, so that it runs in our sandbox and not in the record.
"""

import asyncio
import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from benchmarks.sandbox_replay import EXECUTOR_NAMES
from tests.generation.replay_server import CODE_END, rounds_of

OUTPUT = re.compile(r"<llm-code-output>\n(.*?)\n</llm-code-output>", re.DOTALL)
COMMITTEE = "committee"
Rounds = list[str | Callable[[str], str]]
"""What is said in each round: a text, or one that depends on what the code gave."""
# what the executor of these recordings made of a value
ABSOLUTE = ("svamp-fewshot", "multiarith-zeroshot")


def key_of(problem: str) -> str:
    return " ".join(problem.split())


def program_rounds(code: str, absolute: bool) -> Rounds:
    """A program whose answer is its `ans`: code, then the value in a box."""

    def answer(output: str) -> str:
        value = output.strip()
        try:
            number = abs(float(value)) if absolute else float(value)
            value = f"{round(number, 6):g}" if abs(number) < 1e6 else f"{round(number, 2)}"
        except ValueError:
            pass
        return f"The answer is \\boxed{{{value}}}."

    imports = "".join(f"{line}\n" for name, line in EXECUTOR_NAMES.items() if re.search(rf"\b{name}\b", code))
    shown = "ans[0] if isinstance(ans, (list, tuple)) and len(ans) else ans"
    return [f"<llm-code>\n{imports}{code}\n{shown}\n", answer]


def read_recordings(folder: Path) -> dict[str, dict[str, Rounds]]:
    """The rounds of every problem of every recorded system."""
    found: dict[str, dict[str, Rounds]] = {}
    for path in sorted(folder.rglob("*.jsonl.gz")):
        stem = path.name.removesuffix(".jsonl.gz")
        with gzip.open(path, "rt") as lines:
            for row in map(json.loads, lines):
                if "trace" in row:
                    rounds = found.setdefault(row["model"], {})
                    rounds[key_of(row["problem"])] = list(rounds_of(row["trace"]))
                elif "solution" in row:
                    rounds = found.setdefault(row["model"], {})
                    text = re.sub(r"\nA: (.*)\Z", r"\n#### \1", re.sub(r"<<[^<>]*>>", "", row["solution"]).strip())
                    rounds[key_of(row["problem"])] = [text]
                else:
                    passage = row.get("passage", "").strip().rstrip(".").rstrip()
                    problem = f"{passage}. {row['question']}" if passage else row["question"]
                    code = row["generated"] if isinstance(row["generated"], str) else row["generated"][0]
                    found.setdefault(stem, {})[key_of(problem)] = program_rounds(code, stem in ABSOLUTE)
    return found


def answer_to(asked: dict, recordings: dict[str, dict[str, Rounds]]) -> dict:
    problem, _, written = asked["prompt"].rpartition("\nProblem:\n")[2].partition("\n\nSolution:\n")
    outputs = OUTPUT.findall(written)
    seed = (asked.get("seed", 0) - len(outputs) * 0x9E3779B1) & 0x7FFFFFFF
    rounds = chosen(asked["model"], key_of(problem), seed, recordings)
    said = f"a text of seed {seed}" if rounds is None else rounds[min(len(outputs), len(rounds) - 1)]
    text = said if isinstance(said, str) else said(outputs[-1])
    stopped = rounds is not None and len(outputs) < len(rounds) - 1
    return {
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", "stop_reason": CODE_END if stopped else None}],
        "usage": {"prompt_tokens": len(asked["prompt"]) // 4, "completion_tokens": max(1, len(text) // 4)},
    }


def chosen(model: str, problem: str, seed: int, recordings: dict[str, dict[str, Rounds]]) -> Rounds | None:
    if model != COMMITTEE:
        return recordings[model].get(problem)
    able = [each[problem] for _, each in sorted(recordings.items()) if problem in each]
    return able[seed % len(able)] if able else None


async def serve(recordings: dict[str, dict[str, Rounds]], port_file: Path) -> None:
    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["model"] not in (*recordings, COMMITTEE):
            return web.json_response({"error": "no such model"}, status=404)
        return web.json_response(answer_to(asked, recordings))

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in (*recordings, COMMITTEE)]})

    app = web.Application(client_max_size=1 << 24)
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
    asyncio.run(serve(read_recordings(Path(sys.argv[1])), Path(sys.argv[2])))
