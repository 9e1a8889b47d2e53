"""One question, its code and output shown as they come."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
from mathmill.stages.server_step import server_section

QUESTION = (
    "One machine prints 34 cards a minute and another prints 57. How many cards do they print together in 26 minutes?"
)


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """Solve one question here, with a server of our own or one that is already there; its code runs in the sandbox."""

    question: Annotated[str, tyro.conf.Positional] = QUESTION
    """The problem's text."""
    cluster: str = "local"
    """Whose models may be named: a name in cluster_configs/, or a path to a yaml file."""
    model: str = "words"
    """A name under models: in the cluster's file, or a Hugging Face folder (with --server_address: as it is served)."""
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
    problem = Problem(
        problem_id=short_sha(options.question),
        problem=options.question,
        expected_answer=options.expected_answer,
        dataset="asked",
        split="",
    )
    sample_set = SampleSet(
        name="asked",
        problems_sha="",
        num_problems=1,
        prompt=load_prompt(options.prompt),
        model=options.model,
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
    if options.server_address is not None:
        token = os.environ.get(options.server_token_env)
        address = Address(
            url=options.server_address, kind="openai", model=options.model, token=token, context_length=None
        )
        return asyncio.run(show_solution(sample_set, problem, address, options.model))
    model = resolve_model(options.model, load_cluster(options.cluster))
    with own_server(model) as address:
        return asyncio.run(show_solution(sample_set, problem, address, model.path))


@contextlib.contextmanager
def own_server(model: Model) -> Iterator[Address]:
    """A server of this model on this machine, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="mathmill-solve-") as folder:
        job, log, ready = Path(folder, "job.json"), Path(folder, "server.log"), Path(folder, "servers", "solve.json")
        job.write_text(json.dumps({"server": server_section(model, here=True)}))
        surroundings = {**os.environ, "MATHMILL_RUN": folder, "MATHMILL_JOB": "solve", TOLD: "1"}
        with log.open("wb") as output:
            command = [sys.executable, "-m", "mathmill.serving.start", str(job)]
            server = subprocess.Popen(command, env=surroundings, stdout=output, stderr=output)
        try:
            while not ready.exists():
                if server.poll() is not None:
                    last = log.read_text(errors="replace").strip().splitlines()[-5:]
                    raise UserError(f"the server of {model.path} died at its start: {' | '.join(last)}")
                time.sleep(0.02)
            yield read_address(ready)
        finally:
            server.terminate()
            server.wait()


async def show_solution(sample_set: SampleSet, problem: Problem, address: Address, model_path: str) -> int:
    """Solve and print as it comes. 0: solved (correctly, where the answer is known), 1: not."""
    from mathmill.generation.client import CompletionClient
    from mathmill.generation.solve import Origin, SampleFailedError, Solver
    from mathmill.grading import GradingPool
    from mathmill.sandbox import AsyncSandbox

    fields = KINDS[address.kind].fields
    async with contextlib.AsyncExitStack() as stack:
        client = CompletionClient(address.url, address.model, fields=fields, token=address.token, patience_s=20)
        await stack.enter_async_context(client)
        sandbox = await AsyncSandbox.start() if sample_set.prompt.code else None
        if sandbox is not None:
            stack.push_async_callback(sandbox.close)
        grading = GradingPool()
        stack.callback(grading.close)
        origin = Origin(server_kind=address.kind, seed_honoured=None, code_sha="")
        solver = Solver(sample_set, text_maker(sample_set.prompt, model_path), origin, client, sandbox, grading)
        print(f"{problem.problem}\n", flush=True)
        try:
            solution = await solver.solve(problem, 0, lambda text: print(text, end="", flush=True))
        except SampleFailedError as reason:
            raise UserError(f"this question cannot be solved: {reason}") from None
    print("" if solution.generation.endswith("\n") else "\n")
    verdict = {True: "correct", False: "wrong", None: "not graded"}[solution.is_correct]
    print(
        f"answer: {solution.predicted_answer or 'none'} ({verdict})   {solution.num_tokens} tokens, "
        f"{len(solution.code_blocks)} blocks of code, ended by: {solution.finish_reason}",
        file=sys.stderr,
    )
    return 0 if solution.predicted_answer is not None and solution.is_correct is not False else 1
