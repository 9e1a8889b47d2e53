"""Stage: masked solutions: candidates out of a model, and the one of each problem that helps most and tells least."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mathmill.generation.sets import Sampling
from mathmill.launch.launching import cluster_for
from mathmill.options import script
from mathmill.problems import load_problems
from mathmill.prompts import load_prompt
from mathmill.run import Run
from mathmill.stages.sampling import (
    SamplingOptions,
    launch_sets,
    model_of,
    plan_set,
    refuse_below_one,
    refuse_contradictory_server,
    slug,
)


@dataclass(frozen=True, kw_only=True)
class MaskSolutionsOptions(SamplingOptions):
    """Mask the reference solutions of problems. Samples candidates; once all are there, the same command selects."""

    problems: str = "words:train"
    """NAME:SPLIT of a prepared benchmark, or a FILE.jsonl; problems need expected_answer and reference_solution."""
    prompt: str = "mask_sft"
    """A prompt that asks for masked solutions; for base models mask_base, or mask_base@SET with the examples of a set."""
    num_candidates: int = 8
    """Candidates a problem."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 0.95
    """Share of the probability that tokens are drawn from."""
    max_tokens: int = 512
    """Tokens of a candidate."""
    fallback: Literal["none", "published"] = "none"
    """Where every candidate tells the answer or has a wrong length: none leaves the problem without a masked solution,
    published takes one that tells it, or the reference itself."""


def main() -> None:
    script(MaskSolutionsOptions, mask_solutions)


def mask_solutions(options: MaskSolutionsOptions) -> int:
    """Launch what is missing of the candidates; select once they are all there."""
    refuse_contradictory_server(options)
    refuse_below_one(options, "num_candidates", "max_tokens")
    cluster = cluster_for(options)
    model = model_of(options, cluster)
    problems = load_problems(options.problems)
    name = f"masks-{slug(f'{problems[0].dataset}-{problems[0].split}')}"
    run = Run(Path("runs", options.run or f"{name}-{slug(model.name)}-{slug(options.prompt)}").resolve())
    sampling = Sampling(
        temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens,
        max_tokens_per_round=options.max_tokens, max_code_executions=1, stop_on_code_error=True, output_style="omi1",
        max_output_characters=1000, code_timeout_s=10.0,
    )  # fmt: skip
    planned = plan_set(
        run, name, problems, load_prompt(options.prompt), model, sampling,
        num_samples=options.num_candidates, seed=options.seed, num_jobs=options.num_jobs,
    )  # fmt: skip
    if planned.work.shards_left or options.dry_run or options.test_only:
        lines = [
            ("work", f"{len(problems):,} problems of {options.problems} x {options.num_candidates} candidates"),
            ("left", f"{planned.work.rows_left:,} of {planned.work.num_rows:,} candidates"),
            ("model", f"{model.name}, prompt {planned.sample_set.prompt.name}, temperature {options.temperature:g}"),
        ]
        code = launch_sets([planned], model, cluster, run, options, lines)
        if code or cluster.executor != "local" or options.dry_run:
            return code
    return select(run, name, options.fallback)


def select(run: Run, name: str, fallback: str) -> int:
    """Select the masked solutions of a set that is whole, and say where they are."""
    from mathmill.grading import GradingPool
    from mathmill.selection.work import MaskWork, make_masks, masked_problems_file, masks_file

    pool = GradingPool(len(os.sched_getaffinity(0)))
    try:
        make_masks(MaskWork(candidates=name, fallback=fallback), run, pool)
    finally:
        pool.close()
    paths: Sequence[Path] = (masked_problems_file(run, name), masks_file(run, name))
    print(f"problems with their masked solutions: {paths[0]}\nwhy each was selected: {paths[1]}", file=sys.stderr)
    return 0
