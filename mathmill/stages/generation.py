"""The main job: problems to graded solutions, here or as an array on a cluster."""

import asyncio
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mathmill import __version__
from mathmill.chat_template import text_maker
from mathmill.errors import UserError
from mathmill.files import publish_once
from mathmill.generation.options import WorkerOptions
from mathmill.generation.sets import (
    SampleSet,
    Sampling,
    SetFolder,
    create_set,
    refuse_other_options,
    sets_of,
    shard_shape,
)
from mathmill.generation.shards import cut, published
from mathmill.launch.cluster import Cluster, Model, resolve_model
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import LaunchOptions, cluster_for, launch
from mathmill.options import script
from mathmill.problems import load_problems
from mathmill.prompts import load_prompt
from mathmill.records import Problem, lines_of, short_sha
from mathmill.run import Run, check_run_name
from mathmill.serving.kinds import find_kind
from mathmill.stages.steps import sandbox_step, server_section, server_step

BUNDLED_MODEL = "words"
AT_LEAST_ONE = (
    "num_jobs",
    "num_samples",
    "max_tokens",
    "max_tokens_per_round",
    "max_in_flight",
    "max_output_characters",
)


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(LaunchOptions):
    """Sample solutions for a set of problems: generate, run the code, grade the answer. The same command again goes on."""

    problems: str = "words:test"
    """NAME:SPLIT of a prepared benchmark, or a FILE.jsonl with a problem a line."""
    model: str | None = None
    """A name under models: in the cluster's file, or a Hugging Face folder; unset: words, the bundled one."""
    prompt: str = "code_sft"
    """A name in prompts/, or a path to a yaml file."""
    num_samples: int = 4
    """Solutions a problem. More of them later keep those that are there."""
    temperature: float = 0.7
    """0 is greedy: one sample a problem."""
    top_p: float = 0.95
    """Share of the probability that tokens are drawn from."""
    max_tokens: int = 2048
    """Tokens the model may generate for one solution."""
    max_tokens_per_round: int = 512
    """Tokens it may generate before its first block of code, and after each."""
    max_code_executions: int = 3
    """Blocks of code run for one solution."""
    stop_on_code_error: bool = True
    """End a solution at its first failing block, or show the model what failed."""
    output_style: Literal["omi1", "ipython"] = "ipython"
    """What the model is shown of its code: ipython: what a notebook shows; omi1: the last value, as OpenMathInstruct-1."""
    max_output_characters: int = 1000
    """Where an output is cut."""
    code_timeout_s: float = 10.0
    """Seconds that a block may run."""
    seed: int = 0
    """The run's seed; every sample's own seed follows from it."""
    server: str | None = None
    """Kind of server: bundled, trtllm, vllm, sglang, or openai for one that is already there; unset: the model's."""
    server_address: str | None = None
    """URL of that server, with --server openai."""
    server_token_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds its token, if it wants one."""
    max_in_flight: int = 256
    """Requests a task keeps at its server, at most."""


def main() -> None:
    script(GenerationOptions, run_generation)


def run_generation(options: GenerationOptions) -> int:
    """Launch what is missing of the run that the options name; a finished run prints its table."""
    refuse_contradictions(options)
    cluster = cluster_for(options)
    model = model_of(options, cluster)
    problems = load_problems(options.problems)
    sample_set = sample_set_of(options, model, problems)
    run = Run(Path("runs", options.run or run_name(sample_set)).resolve())
    folder = SetFolder(run.solutions / sample_set.name)
    if folder.config.exists():
        refuse_other_options(run, folder.load(), sample_set)
        sample_set = folder.load()
    work = work_of(sample_set, folder, options.num_samples)
    if not (work.shards_left or options.dry_run or options.test_only):
        from mathmill.generation.summary import print_summary

        print_summary(run)
        print(f"{run.folder} is finished; nothing to do", file=sys.stderr)
        return 0

    def prepare() -> None:
        create_run(run)
        create_set(run, sample_set, problems).grow(options.num_samples)

    runs_code = sample_set.prompt.code or any(one.load().prompt.code for one in sets_of(run, model.name))
    job = generation_job(options, model, work, cluster, runs_code)
    return launch([job], cluster, run, options, work_lines(options, sample_set, work, problems), prepare=prepare)


def refuse_contradictions(options: GenerationOptions) -> None:
    """Options that cannot be meant, alone or together."""
    if options.temperature == 0 and options.num_samples > 1:
        raise UserError(
            f"--temperature 0 would make {options.num_samples} equal solutions a problem; "
            "add --num_samples 1, or take a temperature above 0"
        )
    if options.server == "openai" and options.server_address is None:
        raise UserError("--server openai asks a server that is already there; add --server_address URL")
    if options.server_address is not None and options.server != "openai":
        raise UserError("--server_address names a server that is already there; add --server openai")
    for name in AT_LEAST_ONE:
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if not 0 <= options.temperature < math.inf or not 0 < options.top_p <= 1:
        raise UserError("--temperature must be 0 or more, and --top_p above 0 and at most 1")
    if not 0 < options.code_timeout_s < math.inf:
        raise UserError(f"--code_timeout_s must be above 0, not {options.code_timeout_s}")
    if options.run is not None:
        check_run_name(options.run)


def model_of(options: GenerationOptions, cluster: Cluster) -> Model:
    """The model of the options; for a server that is already there, under the name that it serves."""
    if options.server_address is None:
        if options.server is not None:
            find_kind(options.server)
        return resolve_model(options.model or BUNDLED_MODEL, cluster, options.server)
    from mathmill.generation.client import served_model

    warn_of_withheld_token(options, cluster)
    token = os.environ.get(options.server_token_env)
    folder = Path(options.model or "").expanduser()
    is_folder = options.model is not None and (folder / "config.json").is_file()  # its chat template is needed
    name = (
        options.model if options.model and not is_folder else asyncio.run(served_model(options.server_address, token))
    )
    path = str(folder.resolve()) if is_folder else ""
    return Model(name=name, path=path, context_length=None, server="openai", gpus=0, nodes=1, arguments=[])


def warn_of_withheld_token(options: GenerationOptions, cluster: Cluster) -> None:
    """A token that is set here does not reach a cluster's nodes unless the cluster's file names it."""
    name = options.server_token_env
    if cluster.executor == "slurm" and name in os.environ and name not in cluster.env:
        print(f"note: {name} is set here but not passed on: add it under env: in {cluster.file}", file=sys.stderr)


def sample_set_of(options: GenerationOptions, model: Model, problems: list[Problem]) -> SampleSet:
    """The set that the options describe. Its prompt is tried on every problem: a missing field is found here."""
    prompt = load_prompt(options.prompt)
    text_of = text_maker(prompt, model.path)
    for problem in problems:
        text_of(problem)
    problems_per_shard, samples_per_shard = shard_shape(len(problems), options.num_samples, options.num_jobs)
    dataset, split = problems[0].dataset, problems[0].split
    return SampleSet(
        name=slug(f"{dataset}-{split}"),
        problems_sha=short_sha(lines_of(problems)),
        num_problems=len(problems),
        prompt=prompt,
        model=model.name,
        sampling=Sampling(**{name: getattr(options, name) for name in Sampling.__struct_fields__}),
        seed=options.seed,
        problems_per_shard=problems_per_shard,
        samples_per_shard=samples_per_shard,
    )


def slug(text: str) -> str:
    """A name for a file: other signs than letters, digits, `.`, `_` and `-` become `-`; a hash where nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or short_sha(text)


def run_name(sample_set: SampleSet) -> str:
    """The same for the same set, model and prompt, so that the same command goes on."""
    return f"{sample_set.name}-{slug(sample_set.model)}-{slug(sample_set.prompt.name)}"


@dataclass(frozen=True)
class Work:
    """What is to be done for a set, in shards and rows."""

    num_shards: int
    num_rows: int
    shards_left: int
    rows_left: int

    def num_tasks(self, num_jobs: int) -> int:
        """Tasks worth starting: no more than shards; of a finished run, as many as a new one would have."""
        return min(num_jobs, self.shards_left or self.num_shards)


def work_of(sample_set: SampleSet, folder: SetFolder, num_samples: int) -> Work:
    """The work of a set with this many samples a problem, less what is published; the folder need not exist."""
    shards = cut(sample_set, folder.extents_with(num_samples))
    done = published(folder)
    left = [shard for shard in shards if shard.name not in done]
    return Work(len(shards), sum(s.num_rows for s in shards), len(left), sum(s.num_rows for s in left))


def work_lines(
    options: GenerationOptions, sample_set: SampleSet, work: Work, problems: list[Problem]
) -> list[tuple[str, str]]:
    """What a launch says of its work."""
    temperature, tasks = sample_set.sampling.temperature, work.num_tasks(options.num_jobs)
    lines = [
        ("work", f"{sample_set.num_problems:,} problems of {options.problems} x {options.num_samples} samples"),
        (
            "left",
            f"{work.rows_left:,} of {work.num_rows:,} samples, {work.shards_left:,} of {work.num_shards:,} shards",
        ),
        ("model", f"{sample_set.model}, prompt {sample_set.prompt.name}, temperature {temperature:g}"),
    ]
    if not work.shards_left:
        lines.append(("note", "this run is finished: nothing would be submitted"))
    if options.num_jobs > tasks:
        lines.append(("note", f"{options.num_jobs:,} tasks were asked for; there are {tasks:,} shards to share"))
    if unknown := sum(problem.expected_answer is None for problem in problems):
        lines.append(("note", f"{unknown:,} of {len(problems):,} problems have no expected_answer: not graded"))
    return lines


def create_run(run: Run) -> None:
    """Write run.yaml once."""
    if not run.config.exists():
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        publish_once(run.config, msgspec.yaml.encode({"name": run.name, "created": created, "version": __version__}))


def generation_job(options: GenerationOptions, model: Model, work: Work, cluster: Cluster, runs_code: bool) -> Job:
    """The job that makes the samples: a server unless there is one, a sandbox if code is to be run, and the worker."""
    steps = [
        *([server_step(model)] if options.server_address is None else []),
        *([sandbox_step()] if runs_code else []),
        Step(name="generation", role="client", module="mathmill.generation", main=True, secrets=True),
    ]
    worker = WorkerOptions(
        model=model.name,
        model_path=model.path,
        server_address=options.server_address,
        server_model=model.name,
        server_token_env=options.server_token_env,
        max_in_flight=options.max_in_flight,
        # a task that is still busy when its limit comes is not queued again, so the drain ends well before
        drain_s=0.7 * (cluster.stop_before_s or 600),
    )
    sections = {
        "server": server_section(model, here=cluster.executor == "local"),
        "sandbox": {"policy": cluster.sandbox_policy},
        "generation": msgspec.to_builtins(worker),
    }
    return Job(
        name="generation",
        steps=tuple(steps),
        tasks=work.num_tasks(options.num_jobs),
        options={step.name: sections[step.name] for step in steps},
    )
