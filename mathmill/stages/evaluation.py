"""A model on benchmarks: greedy and sampled solutions of all of them as sample sets of one array."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from mathmill.errors import UserError
from mathmill.evaluation.sets import BOUND, GREEDY, SAMPLED, changed_keys, keep_benchmark, kept_benchmark, set_name
from mathmill.generation.sets import Sampling
from mathmill.launch.cluster import Model
from mathmill.launch.launching import cluster_for
from mathmill.options import script
from mathmill.problems import evenly_spaced, load_problems
from mathmill.problems.benchmark import Benchmark, load_benchmark
from mathmill.prompts import load_prompt
from mathmill.records import Problem
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
    work_of_all,
)

MOST_SAMPLES = 1_000_000
"""Solutions a problem: every shard of the work is counted before anything is submitted."""
SETTINGS: dict[str, dict[str, Any]] = {
    # spec of the published pipelines: 1.6 and 1.9 (evaluation: six executions, errors are shown to the model)
    "openmathinstruct-1": {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 4096,
        "max_tokens_per_round": 512,
        "max_code_executions": 6,
        "stop_on_code_error": False,
        "output_style": "omi1",
        "max_output_characters": 1000,
        "code_timeout_s": 10.0,
    },
    # 2.5: text alone, 4,096 new tokens, the model's own chat template
    "openmathinstruct-2": {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 4096,
        "max_tokens_per_round": 4096,
        "max_code_executions": 6,
        "stop_on_code_error": False,
        "output_style": "ipython",
        "max_output_characters": 1000,
        "code_timeout_s": 10.0,
    },
}
PROMPTS = {"openmathinstruct-2": "text_chat"}
"""Instead of the benchmark's own prompt."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(SamplingOptions):
    """Evaluate a model on benchmarks. The same command goes on; more samples or benchmarks only add to what is there."""

    benchmarks: str = "words:8"
    """NAME or NAME:K, separated by commas: one greedy solution a problem, and with K that many sampled ones. A NAME in
    problems/benchmarks/, or a path to a yaml file."""
    num_problems: int | None = None
    """At most this many problems of each benchmark, evenly spaced over it, in a run of their own; unset: all."""
    settings: Literal["openmathinstruct-1", "openmathinstruct-2"] = "openmathinstruct-1"
    """As published: -1: code, 6 executions, errors shown; -2: text, chat template, 4,096 tokens. Flags below replace parts."""
    prompt: str | None = None
    """A name in prompts/, or a path to a yaml file, for all benchmarks; unset: text_chat for -2, else the benchmark's own."""
    greedy: bool = True
    """Also make one solution a problem at temperature 0."""
    temperature: float | None = None
    """Of the sampled solutions; unset: 0.7."""
    top_p: float | None = None
    """Share of the probability that tokens are drawn from; unset: 0.95."""
    max_tokens: int | None = None
    """Tokens the model may generate for one solution; unset: 4096."""
    max_tokens_per_round: int | None = None
    """Tokens it may generate before its first block of code, and after each; unset: 512 for -1."""
    max_code_executions: int | None = None
    """Blocks of code run for one solution; unset: 6."""
    stop_on_code_error: bool | None = None
    """End a solution at its first failing block; unset: no, the model is shown what failed."""
    output_style: Literal["omi1", "ipython"] | None = None
    """What the model is shown of its code, as in its training data; unset: omi1 for -1."""
    code_timeout_s: float | None = None
    """Seconds that a block may run; unset: 10."""


@dataclass(frozen=True)
class Wanted:
    """A benchmark with its problems, and how many sampled solutions of each are wanted."""

    name: str
    asked: str
    """As the flag has it: a name, or the path of its yaml."""
    benchmark: Benchmark
    problems: list[Problem]
    num_samples: int


def main() -> None:
    script(EvaluationOptions, run_evaluation)


def run_evaluation(options: EvaluationOptions) -> int:
    """Launch what is missing of the evaluation that the options name; a finished one prints its results."""
    refuse_contradictions(options)
    wanted = [wanted_of(word, options.num_problems) for word in benchmark_words(options.benchmarks)]
    cluster = cluster_for(options)
    model = model_of(options, cluster)
    run = Run(Path("runs", options.run or run_name(options, model)).resolve())
    changes = [line for one in wanted for line in changes_of(options, one, run)]
    planned = [each for one in wanted for each in plan_benchmark(options, one, run, model)]
    if not planned:
        raise UserError("--no_greedy and no K: nothing to do; write --benchmarks NAME:K")

    def keep_benchmarks() -> None:
        for one in wanted:
            keep_benchmark(run, one.name, one.benchmark, one.asked)

    if not (work_of_all(planned).shards_left or options.dry_run or options.test_only):
        from mathmill.stages.summarize_results import print_results

        print_results([run])  # before what it kept is renewed, so that a change is told
        keep_benchmarks()
        print(f"{run.folder} is finished; nothing to do", file=sys.stderr)
        return 0
    summary = [*work_lines(options, wanted, planned), *changes]
    return launch_sets(planned, model, cluster, run, options, summary, keep_benchmarks)


def refuse_contradictions(options: EvaluationOptions) -> None:
    """Options that cannot be meant, alone or together."""
    refuse_contradictory_server(options)
    given = [
        name
        for name in ("num_problems", "max_tokens", "max_tokens_per_round", "max_code_executions")
        if getattr(options, name) is not None
    ]
    refuse_below_one(options, *given)
    if options.temperature is not None and not 0 < options.temperature < float("inf"):
        raise UserError("--temperature is that of the sampled solutions: above 0 (greedy ones are made anyway)")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise UserError(f"--top_p must be above 0 and at most 1, not {options.top_p}")
    if options.code_timeout_s is not None and not 0 < options.code_timeout_s < float("inf"):
        raise UserError(f"--code_timeout_s must be above 0, not {options.code_timeout_s}")


def benchmark_words(text: str) -> list[tuple[str, int]]:
    """Names and numbers of samples (0: greedy only) of `gsm8k:50,math`."""
    words: list[tuple[str, int]] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, colon, count = word.rpartition(":")
        if not colon:
            name, count = word, "0"
        if not (name and re.fullmatch("[0-9]+", count) and (int(count) or not colon)):
            raise UserError(f"--benchmarks: '{word}'; write NAME, or NAME:K with K sampled solutions a problem")
        if int(count) > MOST_SAMPLES:
            raise UserError(f"--benchmarks: '{word}'; at most {MOST_SAMPLES:,} sampled solutions a problem")
        words.append((name, int(count)))
    names = [Path(name).stem for name, _ in words]
    if not names:
        raise UserError("--benchmarks names none; write for example --benchmarks gsm8k:50,math:50")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--benchmarks names {twice} twice")
    return words


def wanted_of(word: tuple[str, int], num_problems: int | None = None) -> Wanted:
    """The benchmark of a name, with its problems or so many of them."""
    name, benchmark = load_benchmark(word[0])
    try:
        problems = load_problems(benchmark.problems)
    except UserError as problem:
        if benchmark.problems.endswith((".jsonl", ".jsonl.gz")) or name == "words":
            raise
        raise UserError(
            f"benchmark {name} is not prepared ({str(problem).partition('.')[0]}); "
            f"do it once: python pipeline/prepare_data.py {word[0]}"
        ) from None
    return Wanted(slug(name), word[0], benchmark, evenly_spaced(problems, num_problems), word[1])


def changes_of(options: EvaluationOptions, one: Wanted, run: Run) -> list[tuple[str, str]]:
    """What is to be said of a benchmark that changed since the run was started; UserError if its sets cannot go on."""
    kept = kept_benchmark(run, one.name)
    changed = [] if kept is None else changed_keys(kept, one.benchmark)
    for key in BOUND:
        if key in changed and not (key == "prompt" and chosen_prompt(options)):
            raise UserError(
                f"{run.folder} was started with {key} {getattr(kept, key)} of benchmark {one.name}, not "
                f"{getattr(one.benchmark, key)}; use another --run, or that {key}"
            )
    told = [key for key in changed if key not in BOUND]
    return (
        [("note", f"benchmark {one.name} has another {', '.join(told)} than before: as it is now goes")] if told else []
    )


def run_name(options: EvaluationOptions, model: Model) -> str:
    """The same for the same model, settings, prompt and number of problems, so that the same command goes on."""
    parts = ["evaluation", slug(model.name), options.settings.replace("openmathinstruct", "omi")]
    parts += [slug(Path(options.prompt).stem)] if options.prompt else []
    parts += [f"{options.num_problems}-problems"] if options.num_problems is not None else []
    return "-".join(parts)


def chosen_prompt(options: EvaluationOptions) -> str | None:
    """The prompt of all benchmarks, instead of each one's own."""
    return options.prompt or PROMPTS.get(options.settings)


def sampling_of(options: EvaluationOptions) -> Sampling:
    """The published settings, with what the flags replace of them."""
    given = {name: getattr(options, name, None) for name in Sampling.__struct_fields__}
    return Sampling(**SETTINGS[options.settings] | {name: value for name, value in given.items() if value is not None})


def plan_benchmark(
    options: EvaluationOptions, one: Wanted, run: Run, model: Model, label: str = ""
) -> list[PlannedSet]:
    """The sets of a benchmark: one greedy solution a problem, and the sampled ones. `label`: of one of a run's several models."""
    prompt = load_prompt(chosen_prompt(options) or one.benchmark.prompt)
    sampled = sampling_of(options)
    greedy = msgspec.structs.replace(sampled, temperature=0.0)
    asked = [(GREEDY, greedy, 1)] * options.greedy + [(SAMPLED, sampled, one.num_samples)] * bool(one.num_samples)
    return [
        plan_set(
            run,
            set_name(f"{label}-{one.name}" if label else one.name, decoding),
            one.problems,
            prompt,
            model,
            sampling,
            num_samples=num_samples,
            seed=options.seed,
            num_jobs=options.num_jobs,
            is_stand_in=bool(label),
        )
        for decoding, sampling, num_samples in asked
    ]


def work_lines(
    options: EvaluationOptions, wanted: Sequence[Wanted], planned: Sequence[PlannedSet]
) -> list[tuple[str, str]]:
    """What a launch says of its work."""
    work, first = work_of_all(planned), planned[0].sample_set
    lines = []
    for one in wanted:
        decodings = ["greedy"] * options.greedy + [f"{one.num_samples} samples"] * bool(one.num_samples)
        lines.append(("benchmark", f"{one.benchmark.title}: {len(one.problems):,} problems, {' + '.join(decodings)}"))
        if len(one.problems) != one.benchmark.size:
            lines.append(("note", f"the published {one.benchmark.title} has {one.benchmark.size:,} problems"))
        if unknown := sum(problem.expected_answer is None for problem in one.problems):
            lines.append(("note", f"{unknown:,} problems of {one.name} have no expected_answer: not graded"))
    sampling = sampling_of(options)
    lines += [
        (
            "left",
            f"{work.rows_left:,} of {work.num_rows:,} solutions, {work.shards_left:,} of {work.num_shards:,} shards",
        ),
        ("model", f"{first.model}, prompt {', '.join(sorted({each.sample_set.prompt.name for each in planned}))}"),
        ("settings", f"{options.settings}: temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"),
    ]
    tasks = work.num_tasks(options.num_jobs)
    if options.num_jobs > tasks:
        lines.append(("note", f"{options.num_jobs:,} tasks were asked for; there are {tasks:,} shards to share"))
    return lines
