"""The main job: problems to graded solutions, here or as an array on a cluster."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mathmill.errors import UserError
from mathmill.generation.sets import Sampling
from mathmill.launch.cluster import Model
from mathmill.launch.launching import cluster_for
from mathmill.options import script
from mathmill.problems import load_problems
from mathmill.prompts import Prompt, load_prompt
from mathmill.run import Run
from mathmill.stages.sampling import (
    PlannedSet,
    SamplingOptions,
    launch_sets,
    model_of,
    plan_set,
    refuse_below_one,
    refuse_contradictory_server,
    slug,
)


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingOptions):
    """Sample solutions for a set of problems: generate, run the code, grade the answer. The same command again goes on."""

    problems: str = "words:test"
    """NAME:SPLIT of a prepared benchmark, or a FILE.jsonl with a problem a line."""
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


def main() -> None:
    script(GenerationOptions, run_generation)


def run_generation(options: GenerationOptions) -> int:
    """Launch what is missing of the run that the options name; a finished run prints its table."""
    refuse_contradictions(options)
    cluster = cluster_for(options)
    model = model_of(options, cluster)
    problems = load_problems(options.problems)
    prompt = load_prompt(options.prompt)
    set_name = slug(f"{problems[0].dataset}-{problems[0].split}")
    run = Run(Path("runs", options.run or run_name(set_name, model, prompt)).resolve())
    sampling = Sampling(**{name: getattr(options, name) for name in Sampling.__struct_fields__})
    planned = plan_set(
        run,
        set_name,
        problems,
        prompt,
        model,
        sampling,
        num_samples=options.num_samples,
        seed=options.seed,
        num_jobs=options.num_jobs,
        retry_quarantined=options.retry_quarantined,
    )
    if not (planned.work.shards_left or options.dry_run or options.test_only):
        from mathmill.generation.summary import print_summary

        print(f"{run.folder} is finished; nothing to do", file=sys.stderr)
        print_summary(run)
        return 0
    return launch_sets([planned], model, cluster, run, options, work_lines(options, planned))


def refuse_contradictions(options: GenerationOptions) -> None:
    """Options that cannot be meant, alone or together."""
    if options.temperature == 0 and options.num_samples > 1:
        raise UserError(
            f"--temperature 0 would make {options.num_samples} equal solutions a problem; "
            "add --num_samples 1, or take a temperature above 0"
        )
    refuse_contradictory_server(options)
    refuse_below_one(options, "num_samples", "max_tokens", "max_tokens_per_round", "max_output_characters")
    if not 0 <= options.temperature < math.inf or not 0 < options.top_p <= 1:
        raise UserError("--temperature must be 0 or more, and --top_p above 0 and at most 1")
    if not 0 < options.code_timeout_s < math.inf:
        raise UserError(f"--code_timeout_s must be above 0, not {options.code_timeout_s}")


def run_name(set_name: str, model: Model, prompt: Prompt) -> str:
    """The same for the same set, model and prompt, so that the same command goes on."""
    return f"{set_name}-{slug(model.name)}-{slug(prompt.name)}"


def work_lines(options: GenerationOptions, planned: PlannedSet) -> list[tuple[str, str]]:
    """What a launch says of its work."""
    sample_set, work, problems = planned.sample_set, planned.work, planned.problems
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
