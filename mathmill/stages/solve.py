"""One question, its code and output shown as they come."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from mathmill.chat_template import text_maker
from mathmill.errors import UserError
from mathmill.generation.sets import SampleSet, Sampling
from mathmill.launch.cluster import Model, load_cluster, resolve_model
from mathmill.options import script
from mathmill.parent import TOLD
from mathmill.prompts import load_prompt
from mathmill.records import Problem, short_sha
from mathmill.serving.address import Address, read_address
from mathmill.serving.kinds import KINDS
from mathmill.stages.sampling import BUNDLED_MODEL
from mathmill.stages.steps import server_section

QUESTION = (
    "One machine prints 34 cards a minute and another prints 57. How many cards do they print together in 26 minutes?"
)


START_WITHIN_S = 120.0


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """Solve one question here, with a server of our own or one that is already there; its code runs in the sandbox."""

    question: Annotated[tuple[str, ...], tyro.conf.Positional] = (QUESTION,)
    """The problem's text; quote it where it holds what the shell would read, such as $ or ?."""
    cluster: str = "local"
    """Whose models may be named, and whose sandbox policy holds: a name in cluster_configs/, or a path to a yaml file."""
    model: str | None = None
    """A name in the cluster's file or a Hugging Face folder (by default `words`, or what --server_address serves)."""
    server_address: str | None = None
    """URL of an OpenAI-compatible server that is already there, instead of one of our own."""
    server_token_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds its token, if it wants one."""
    prompt: str = "code_sft"
    """A name in prompts/, or a path to a yaml file."""
    expected_answer: str | None = None
    """The known answer, to grade against."""
    temperature: float = 0.0
    """0 is greedy."""
    max_tokens: int = 2048
    """Tokens the model may generate."""
    seed: int = 0
    """Another seed, another solution (at a temperature above 0)."""


def main() -> None:
    script(SolveOptions, solve)


def solve(options: SolveOptions) -> int:
    question = " ".join(options.question).strip()
    if not question:
        raise UserError("the question is empty; write it behind the script's name, in quotes")
    end_as_on_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    problem = Problem(
        problem_id=short_sha(question),
        problem=question,
        expected_answer=options.expected_answer,
        dataset="asked",
        split="",
    )
    sample_set = SampleSet(
        name="asked",
        problems_sha="",
        num_problems=1,
        prompt=load_prompt(options.prompt),
        model=options.model or BUNDLED_MODEL,
        sampling=Sampling(
            temperature=options.temperature,
            top_p=1.0,
            max_tokens=options.max_tokens,
            max_tokens_per_round=min(512, options.max_tokens),
            max_code_executions=6,
            stop_on_code_error=False,
            output_style="ipython",
            max_output_characters=1000,
            code_timeout_s=10.0,
        ),
        seed=options.seed,
        problems_per_shard=1,
        samples_per_shard=1,
    )
    cluster = load_cluster(options.cluster)
    if options.server_address is not None:
        address, folder = find_server(options.server_address, options.model, os.environ.get(options.server_token_env))
        return asyncio.run(show_solution(sample_set, problem, address, folder, cluster.sandbox_policy))
    model = resolve_model(options.model or BUNDLED_MODEL, cluster)
    with own_server(model) as address:
        return asyncio.run(show_solution(sample_set, problem, address, model.path, cluster.sandbox_policy))


def end_as_on_ctrl_c(*numbers: signal.Signals) -> None:
    """Let these signals, the first time, do what Ctrl-C does: what was started is ended, folders are removed."""

    def interrupt(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it puts in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    for number in numbers:
        signal.signal(number, interrupt)


def find_server(url: str, model: str | None, token: str | None) -> tuple[Address, str]:
    """The server that is already there, and the folder of its model's chat template, where `model` names one."""
    from mathmill.generation.client import served_model

    parts = urlsplit(url)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except (KeyError, ValueError):
        raise UserError(f"--server_address {url} is no address; it looks like http://HOST:PORT") from None
    except OSError as problem:
        raise UserError(f"no server answers at {url} ({problem.strerror or problem}); check --server_address") from None
    folder = Path(model or "").expanduser()
    is_folder = model is not None and (folder / "config.json").is_file()
    name = model if model and not is_folder else asyncio.run(served_model(url, token))
    return Address(url=url, kind="openai", model=name, token=token), str(folder) if is_folder else ""


@contextlib.contextmanager
def own_server(model: Model) -> Iterator[Address]:
    """A server of this model on this machine, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="mathmill-solve-") as folder:
        job, log, ready = Path(folder, "job.json"), Path(folder, "server.log"), Path(folder, "servers", "solve.json")
        job.write_text(json.dumps({"server": server_section(model, here=True)}))
        surroundings = {**os.environ, "MATHMILL_RUN": folder, "MATHMILL_JOB": "solve", TOLD: str(os.getpid())}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "mathmill.serving.start", str(job)]
            server = subprocess.Popen(command, env=surroundings, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_WITHIN_S
            while not ready.exists():
                died = server.poll() is not None
                if died or time.monotonic() > deadline:
                    last = " | ".join(log.read_text(errors="replace").strip().splitlines()[-5:])
                    what = "died at its start" if died else f"was not ready within {START_WITHIN_S:.0f} s"
                    raise UserError(f"the server of {model.path} {what}: {last or 'it said nothing'}")
                time.sleep(0.02)
            yield read_address(ready)
        finally:
            server.terminate()
            server.wait()


async def show_solution(
    sample_set: SampleSet, problem: Problem, address: Address, model_path: str, sandbox_policy: str
) -> int:
    """Solve and print as it comes. 0: solved (correctly, where the answer is known), 1: not."""
    from mathmill.generation.client import CompletionClient, Source
    from mathmill.generation.solve import SampleFailedError, Solver
    from mathmill.grading import GradingPool
    from mathmill.sandbox import AsyncSandbox

    fields = KINDS[address.kind].fields
    async with contextlib.AsyncExitStack() as stack:
        client = CompletionClient(address.url, address.model, fields=fields, token=address.token, patience_s=20)
        await stack.enter_async_context(client)
        client.source = Source(address.kind, None)
        sandbox = await AsyncSandbox.start(sandbox_policy, spares=0) if sample_set.prompt.code else None
        if sandbox is not None:
            stack.push_async_callback(sandbox.close)
        grading = GradingPool()
        stack.callback(grading.close)
        solver = Solver(sample_set, text_maker(sample_set.prompt, model_path), "", client, sandbox, grading)
        print(f"{problem.problem}\n", flush=True)
        try:
            solution = await solver.solve(problem, 0, lambda text: print(text, end="", flush=True))
        except SampleFailedError as reason:
            raise UserError(f"this question cannot be solved: {reason}") from None
    print("" if solution.generation.endswith("\n") else "\n")
    verdict = {True: "correct", False: "wrong", None: "not graded"}[solution.is_correct]
    blocks = len(solution.code_blocks)
    print(
        f"answer: {solution.predicted_answer or 'none'} ({verdict})   {solution.num_tokens} tokens, "
        f"{blocks} {'block' if blocks == 1 else 'blocks'} of code, ended by: {solution.finish_reason}",
        file=sys.stderr,
    )
    return 0 if solution.predicted_answer is not None and solution.is_correct is not False else 1
