"""What every stage that samples solutions shares: its model and server, its sample sets, and one job over all of them."""

import asyncio
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mathmill import __version__
from mathmill.chat_template import text_maker
from mathmill.errors import UserError
from mathmill.files import publish_once
from mathmill.generation.options import WorkerOptions
from mathmill.generation.parts import reopen
from mathmill.generation.progress import num_set_aside
from mathmill.generation.sets import (
    SampleSet,
    Sampling,
    SetFolder,
    create_set,
    refuse_other_options,
    sets_of,
    shard_shape,
)
from mathmill.generation.shards import cut, published, quarantined, reopened
from mathmill.launch.cluster import Cluster, Model, resolve_model
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import LaunchOptions, launch
from mathmill.prompts import Prompt
from mathmill.records import Problem, lines_of, short_sha
from mathmill.run import Run, check_run_name
from mathmill.serving.kinds import find_kind
from mathmill.stages.steps import MAX_IDLE_STARTS, sandbox_step, server_job, server_section, server_step

BUNDLED_MODEL = "words"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(LaunchOptions):
    """A model, where it is served, and where the work runs."""

    model: str | None = None
    """A name under models: in the cluster's file, or a Hugging Face folder; unset: words, the bundled one."""
    seed: int = 0
    """The run's seed; every sample's own seed follows from it."""
    server: str | None = None
    """Kind of server: bundled, trtllm, vllm, sglang, or openai for one that is already there; unset: the model's."""
    server_address: str | None = None
    """URL of that server, with --server openai."""
    server_token_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds its token, if it wants one."""
    max_in_flight: int = 256
    """Requests a task keeps at its server, at most; with --server_jobs at each server."""
    server_jobs: int = 0
    """Servers as an array of their own that all tasks share, each with its weights loaded once; 0: every task has its own."""
    client_jobs: int = 1
    """With --server_jobs: how many tasks, without GPUs, share the work; 0 adds servers alone, to a run that has tasks."""
    server_wait_minutes: float = 720.0
    """With --server_jobs: how long a task, which holds no GPU, waits while no server is there, until it gives up."""
    server_idle_minutes: float = 60.0
    """With --server_jobs: how long a server waits for a task, until it ends; 0: until its time limit."""
    retry_quarantined: bool = False
    """Ask again for the rows that are in quarantine; what was made stays."""


@dataclass(frozen=True)
class Work:
    """What is to be done for a set, in shards and rows."""

    num_shards: int
    num_rows: int
    shards_left: int
    rows_left: int

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.num_shards + other.num_shards,
            self.num_rows + other.num_rows,
            self.shards_left + other.shards_left,
            self.rows_left + other.rows_left,
        )

    def num_tasks(self, num_jobs: int) -> int:
        """Tasks worth starting: no more than shards; of a finished run, as many as a new one would have."""
        return min(num_jobs, self.shards_left or self.num_shards)


@dataclass(frozen=True, kw_only=True)
class PlannedSet:
    """A sample set that a launch is about to create or to go on with, and what is left of it. Nothing is written yet."""

    sample_set: SampleSet
    problems: list[Problem]
    num_samples: int
    work: Work
    notes: list[tuple[str, str]]
    """What a launch should say of it."""


def plan_set(
    run: Run,
    name: str,
    problems: list[Problem],
    prompt: Prompt,
    model: Model,
    sampling: Sampling,
    *,
    num_samples: int,
    seed: int = 0,
    num_jobs: int = 1,
    retry_quarantined: bool = False,
    is_stand_in: bool = False,
) -> PlannedSet:
    """The set of this name in the run, as asked for. Its prompt is tried on every problem: a missing field is found here.

    `is_stand_in`: the model's folder lends its tokenizer alone, since the real one is still to be made.

    UserError where the run has a set of this name that was started with anything else than these, and where no prompt
    fits the model's context.
    """
    text_of = text_maker(prompt, model.path)
    notes = length_notes([text_of(problem) for problem in problems], problems, prompt, model)
    problems_per_shard, samples_per_shard = shard_shape(len(problems), num_samples, num_jobs)
    sample_set = SampleSet(
        name=name,
        problems_sha=short_sha(lines_of(problems)),
        num_problems=len(problems),
        prompt=prompt,
        model=model.name,
        model_path="" if is_stand_in else model.path,
        sampling=sampling,
        seed=seed,
        problems_per_shard=problems_per_shard,
        samples_per_shard=samples_per_shard,
    )
    folder = SetFolder(run.solutions / name)
    if folder.config.exists():
        refuse_other_options(run, folder.load(), sample_set)
        sample_set = folder.load()
    work = work_of(sample_set, folder, num_samples, retry_quarantined)
    return PlannedSet(sample_set=sample_set, problems=problems, num_samples=num_samples, work=work, notes=notes)


def length_notes(texts: list[str], problems: list[Problem], prompt: Prompt, model: Model) -> list[tuple[str, str]]:
    """What is to be said of prompts that do not fit the model's context; UserError where none does."""
    from mathmill.generation.lengths import lengths_of  # brings the client with it, which no --help needs

    lengths = lengths_of(texts, model.path, model.context_length)
    if lengths is None or not lengths.too_long:
        return []
    count, context = len(lengths.too_long), f"{model.name}'s context of {lengths.context_length:,} tokens"
    if count == len(texts):
        raise UserError(f"prompt {prompt.name} is longer than {context} for every problem; use a shorter prompt")
    first = problems[lengths.too_long[0]].problem_id
    said = f"{count:,} of {len(texts):,} prompts do not fit {context} ({first}; the longest has {lengths.longest:,})"
    return [("warning", f"{said}: their rows will be in quarantine")]


def launch_sets(
    planned: Sequence[PlannedSet],
    model: Model,
    cluster: Cluster,
    run: Run,
    options: SamplingOptions,
    summary: Sequence[tuple[str, str]],
    also: Callable[[], None] = lambda: None,
) -> int:
    """Create the sets, or let them grow, and start one job that makes what is left of all of them; an exit code.

    `also` writes what else the stage keeps in the run, after the last refusal.
    """

    def prepare() -> None:
        create_run(run)
        also()
        for one in planned:
            folder = create_set(run, one.sample_set, one.problems)
            folder.grow(one.num_samples)
            if options.retry_quarantined:
                reopen(folder)

    runs_code = any(one.sample_set.prompt.code for one in planned) or any(
        folder.load().prompt.code for folder in sets_of(run, model.name)
    )
    jobs = generation_jobs(options, model, work_of_all(planned), cluster, runs_code)
    notes = [note for one in planned for note in one.notes]
    return launch(jobs, cluster, run, options, [*summary, *notes], prepare=prepare)


def work_of_all(planned: Sequence[PlannedSet]) -> Work:
    """The work of several sets together."""
    return sum((one.work for one in planned), Work(0, 0, 0, 0))


def work_of(sample_set: SampleSet, folder: SetFolder, num_samples: int, retry_quarantined: bool = False) -> Work:
    """The work of a set with this many samples a problem, less what is published; the folder need not exist.

    `retry_quarantined`: what was set aside so far counts as left.
    """
    blocks = cut(sample_set, folder.extents_with(num_samples))
    done = published(folder)
    left = [shard for shard in blocks if shard.name not in done]
    again = [shard.before() for shard in reopened(folder) if shard.name not in done]
    if retry_quarantined:
        again += [shard for shard in quarantined(folder, done) if num_set_aside(folder, shard)]
    rows_again = sum(num_set_aside(folder, shard) for shard in again)
    return Work(
        num_shards=len(blocks),
        num_rows=sum(shard.num_rows for shard in blocks),
        shards_left=len(left) + len(again),
        rows_left=sum(shard.num_rows for shard in left) + rows_again,
    )


def refuse_contradictory_server(options: SamplingOptions) -> None:
    """Options of a server, a run or counts that cannot be meant, alone or together."""
    if options.server == "openai" and options.server_address is None:
        raise UserError("--server openai asks a server that is already there; add --server_address URL")
    if options.server_address is not None and options.server != "openai":
        raise UserError("--server_address names a server that is already there; add --server openai")
    refuse_below_one(options, "num_jobs", "max_in_flight")
    refuse_contradictory_pool(options)
    if options.run is not None:
        check_run_name(options.run)


def refuse_contradictory_pool(options: SamplingOptions) -> None:
    """Options of shared servers that cannot be meant."""
    if options.server_jobs < 0:
        raise UserError(f"--server_jobs must be at least 0, not {options.server_jobs}")
    if options.client_jobs < 0:
        raise UserError(f"--client_jobs must be at least 0, not {options.client_jobs}")
    for name in ("server_wait_minutes", "server_idle_minutes"):
        if not 0 <= getattr(options, name) < math.inf:
            raise UserError(f"--{name} must be at least 0, not {getattr(options, name)}")
    if not options.server_jobs:
        if options.client_jobs != 1:
            raise UserError("--client_jobs shares servers; add --server_jobs N, or say --num_jobs")
        return
    if options.server_address is not None:
        raise UserError("--server_jobs starts servers, and --server_address names one that is there; drop one of them")
    if options.num_jobs > 1:
        raise UserError("--num_jobs are tasks with servers of their own; with --server_jobs say --client_jobs")


def refuse_below_one(options: object, *names: str) -> None:
    """UserError for the first of these options that is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}")


def model_of(options: SamplingOptions, cluster: Cluster) -> Model:
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


def warn_of_withheld_token(options: SamplingOptions, cluster: Cluster) -> None:
    """A token that is set here does not reach a cluster's nodes unless the cluster's file names it."""
    name = options.server_token_env
    if cluster.executor == "slurm" and name in os.environ and name not in cluster.env:
        print(f"note: {name} is set here but not passed on: add it under env: in {cluster.file}", file=sys.stderr)


def slug(text: str) -> str:
    """A name for a file: other signs than letters, digits, `.`, `_` and `-` become `-`; a hash where nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or short_sha(text)


def create_run(run: Run) -> None:
    """Write run.yaml once."""
    if not run.config.exists():
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        publish_once(run.config, msgspec.yaml.encode({"name": run.name, "created": created, "version": __version__}))


def generation_jobs(options: SamplingOptions, model: Model, work: Work, cluster: Cluster, runs_code: bool) -> list[Job]:
    """The jobs that make the samples: shared servers first, where they are asked for, then the workers'."""
    job = generation_job(options, model, work, cluster, runs_code)
    if not options.server_jobs:
        return [job]
    if cluster.executor == "local":
        raise UserError("--server_jobs needs a Slurm cluster; here give --num_jobs, and every task has its own server")
    servers = server_job(model, options.server_jobs, cluster, idle_minutes=options.server_idle_minutes)
    return [servers, job] if options.client_jobs else [servers]


def generation_job(options: SamplingOptions, model: Model, work: Work, cluster: Cluster, runs_code: bool) -> Job:
    """The job that makes the samples: a server unless it is elsewhere, a sandbox if code is to be run, and the worker."""
    has_server = options.server_address is None and not options.server_jobs
    steps = [
        *([server_step(model)] if has_server else []),
        *([sandbox_step()] if runs_code else []),
        Step(name="generation", role="client", module="mathmill.generation", main=True, secrets=True),
    ]
    worker = WorkerOptions(
        model=model.name,
        model_path=model.path,
        server_address=options.server_address,
        server_model=model.name,
        server_token_env=options.server_token_env,
        pool=model.name if options.server_jobs else None,
        server_wait_minutes=options.server_wait_minutes,
        max_in_flight=options.max_in_flight,
        # a task that is still busy when its limit comes is not queued again, so the drain ends well before
        drain_s=0.7 * (cluster.stop_before_s or 600),
        sums_up=cluster.executor == "local",  # elsewhere reading all rows again would hold GPUs
    )
    sections = {
        "server": server_section(model, here=cluster.executor == "local"),
        "sandbox": {"policy": cluster.sandbox_policy},
        "generation": msgspec.to_builtins(worker),
    }
    return Job(
        name="generation",
        steps=tuple(steps),
        tasks=work.num_tasks(max(options.client_jobs, 1) if options.server_jobs else options.num_jobs),
        options={step.name: sections[step.name] for step in steps},
        max_idle_starts=MAX_IDLE_STARTS,
    )
