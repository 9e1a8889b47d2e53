"""Stage: a whole recipe, from sample sets to training sets, in at most one job a stage."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from tyro.conf import Positional

from mathmill.errors import UserError
from mathmill.generation.sets import create_set
from mathmill.launch.cluster import Cluster, Model
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import cluster_for, launch
from mathmill.launch.status import JobState, live_jobs
from mathmill.options import script
from mathmill.problems import load_problems
from mathmill.prompts import load_prompt
from mathmill.recipes import Recipe, SampleSetRecipe, load_recipe, some_of
from mathmill.records import Problem, read_records
from mathmill.run import Run
from mathmill.selection.coverage import CoverageWork
from mathmill.selection.work import (
    MaskedSet,
    MaskWork,
    TrainingSetWork,
    Work,
    check_options,
    masked_problems_file,
    masks_file,
    training_set_folder,
)
from mathmill.stages.sampling import (
    BUNDLED_MODEL,
    PlannedSet,
    SamplingOptions,
    create_run,
    generation_job,
    model_of,
    plan_set,
    refuse_contradictory_server,
    slug,
    work_of_all,
)
from mathmill.stages.sampling import Work as Samples

DATA_CPUS = 16
MASKING = "x"
"""What stands for a masked solution while a prompt is tried on problems that have none yet."""


@dataclass(frozen=True, kw_only=True)
class RunRecipeOptions(SamplingOptions):
    """Make a dataset by its recipe: plan it, submit what is missing, show how far it is. The same command again goes on."""

    recipe: Positional[str] = "openmathinstruct-1"
    """A name in recipes/, or a path to a yaml file."""
    scale: float = 1.0
    """The share of the recipe's samples that is made: its root of the problems, and of the samples of each."""
    show: bool = False
    """Only show how far the recipe is."""


def main() -> None:
    script(RunRecipeOptions, run_recipe)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the recipe: what it makes, how far it is, and the job that would do the rest; None where all is done."""

    name: str
    makes: str
    done: int
    of: int
    unit: str
    job: Job | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The recipe as it is asked for, in its run."""

    recipe: Recipe
    run: Run
    model: Model
    sets: list[PlannedSet]
    """Candidates for masks, and samples that need none."""
    masked: dict[str, PlannedSet]
    """As they would be if every problem got a masked solution; as they are where they have been made."""
    stages: list[Stage]


def run_recipe(options: RunRecipeOptions) -> int:
    """Launch the stages that are not done, each after those before it; a finished recipe does nothing."""
    refuse_contradictory_server(options)
    if not 0 < options.scale <= 1:
        raise UserError(f"--scale must be above 0 and at most 1, not {options.scale}")
    cluster = cluster_for(options)
    recipe = load_recipe(options.recipe)
    if options.model is None and options.server_address is None:
        options = replace(options, model=BUNDLED_MODEL if cluster.executor == "local" else recipe.model)
    plan = plan_recipe(options, recipe, cluster)
    live = live_jobs(plan.run) if plan.run.config.exists() and not options.dry_run else []
    picture(plan, live)
    if options.show:
        return 0
    if all(stage.job is None for stage in plan.stages) and not (options.dry_run or options.test_only):
        print(f"{plan.run.folder} is finished; nothing to do", file=sys.stderr)
        return 0

    def prepare() -> None:
        create_run(plan.run)
        for one in plan.sets:
            create_set(plan.run, one.sample_set, one.problems).grow(one.num_samples)

    jobs = waiting_jobs(plan.stages, live)
    if live and not jobs:
        print(f"{plan.run.folder}: all that is missing is queued or running; nothing was submitted", file=sys.stderr)
        return 0
    launched = replace(options, add_jobs=True) if live else options
    return launch(jobs, cluster, plan.run, launched, work_lines(plan, options), prepare=prepare)


def waiting_jobs(stages: Sequence[Stage], live: Sequence[JobState]) -> list[Job]:
    """The jobs of the stages that are not done and not at work, in order, each after the one before it."""
    jobs: list[Job] = []
    before: tuple[str, ...] = ()
    for stage in stages:
        if stage.job is None:
            continue
        at_work = [job.submission.job_id for job in live if is_of(job, stage.name)]
        if at_work:
            before = tuple(filter(None, at_work))
        else:
            jobs.append(replace(stage.job, after=before))
            before = (stage.name,)
    return jobs


def is_of(job: JobState, stage: str) -> bool:
    """Whether a submission was of this stage: its name may go on with a number, or with a part of an array."""
    name = job.submission.name
    return name == stage or (
        name.startswith(f"{stage}-") and name[len(stage) + 1 :].removeprefix("part").replace("-", "").isdigit()
    )


def plan_recipe(options: RunRecipeOptions, recipe: Recipe, cluster: Cluster) -> Plan:
    """Everything that the recipe would make, and what is left of it. Nothing is written."""
    model = model_of(options, cluster)
    scale = f"-{options.scale:g}" if options.scale != 1 else ""
    run = Run(Path("runs", options.run or f"{recipe.name}-{slug(model.name)}{scale}").resolve())
    recipe = recipe.for_model(model.name).scaled(options.scale)
    problems = {name: some_of(load_problems(where), options.scale) for name, where in recipe.problems.items()}

    def planned(name: str, one: SampleSetRecipe, those: list[Problem]) -> PlannedSet:
        return plan_set(
            run, name, those, load_prompt(one.prompt), model, recipe.sampling,
            num_samples=one.num_samples, seed=options.seed, num_jobs=options.num_jobs,
        )  # fmt: skip

    sets = [planned(name, one, problems[one.problems]) for name, one in {**recipe.masks, **recipe.samples}.items()]
    masked = {
        name: planned(name, one, masked_problems(run, one, problems[one.problems]))
        for name, one in recipe.masked_samples.items()
    }
    stages = list(stages_of(recipe, run, model, sets, masked, options, cluster))
    return Plan(recipe=recipe, run=run, model=model, sets=sets, masked=masked, stages=stages)


def masked_problems(run: Run, one: SampleSetRecipe, problems: list[Problem]) -> list[Problem]:
    """The problems of a set with their masked solutions; before there are any, all problems with a letter in their place."""
    found = masked_problems_file(run, one.masks or "")
    if masks_file(run, one.masks or "").exists() and found.stat().st_size:
        return list(read_records(found, Problem))
    return [msgspec.structs.replace(problem, masked_reference_solution=MASKING) for problem in problems]


def stages_of(
    recipe: Recipe,
    run: Run,
    model: Model,
    sets: list[PlannedSet],
    masked: dict[str, PlannedSet],
    options: RunRecipeOptions,
    cluster: Cluster,
):
    """The stages in their order, those of masks only where the recipe has any."""

    def sampling(name: str, makes: str, work: Samples, runs_code: bool, needs: list[str]) -> Stage:
        job = generation_job(options, model, work, cluster, runs_code)
        told = {**job.options["generation"], "needs": needs, "sums_up": False}
        job = replace(job, name=name, options={**job.options, "generation": told})
        done = work.num_rows - work.rows_left
        return Stage(
            name=name, makes=makes, done=done, of=work.num_rows, unit="samples", job=job if work.shards_left else None
        )

    codes = [one.sample_set.prompt.code for one in [*sets, *masked.values()]]
    yield sampling("samples", f"{len(sets)} sets", work_of_all(sets), any(codes), [])
    if recipe.masks:
        files = [masks_file(run, name) for name in recipe.masks]
        left = [name for name, file in zip(recipe.masks, files, strict=True) if not file.exists()]
        work = Work(masks=[mask_work(name, recipe, masked) for name in left], processes=data_cpus(cluster))
        yield data_stage("masks", "masked solutions", len(files), len(left), work, cluster)
        empty = {name for name, file in zip(recipe.masks, files, strict=True)
                 if file.exists() and not masked_problems_file(run, name).stat().st_size}  # fmt: skip
        wanted = [one for name, one in masked.items() if recipe.masked_samples[name].masks not in empty]
        needs = [str(file.relative_to(run.folder)) for file in files]
        yield sampling("masked-samples", f"{len(wanted)} sets", work_of_all(wanted), any(codes), needs)
    folders = {name: training_set_folder(run, name) for name in recipe.training_sets}
    absent = [name for name, folder in folders.items() if not folder.exists()]
    work = Work(
        training_sets=[training_work(name, recipe) for name in absent],
        coverage=[] if (run.folder / "reports" / "coverage.json").exists() and not absent else [coverage_work(recipe)],
        processes=data_cpus(cluster),
    )
    reports = len(work.coverage)
    yield data_stage("data", "training sets, coverage", len(folders) + 1, len(absent) + reports, work, cluster)


def data_stage(name: str, makes: str, of: int, left: int, work: Work, cluster: Cluster) -> Stage:
    """A stage without a model: one job on CPUs."""
    step = Step(name="selection", role="client", module="mathmill.selection", main=True)
    job = Job(name=name, steps=(step,), options={"selection": msgspec.to_builtins(work)}, cpus=data_cpus(cluster))
    return Stage(name=name, makes=makes, done=of - left, of=of, unit="parts", job=job if left else None)


def data_cpus(cluster: Cluster) -> int:
    """CPUs that a data stage asks for: as many as a node has, sixteen at most."""
    return min(DATA_CPUS, cluster.cpus or (len(os.sched_getaffinity(0)) if cluster.executor == "local" else 4))


def mask_work(name: str, recipe: Recipe, masked: dict[str, PlannedSet]) -> MaskWork:
    """Masks out of these candidates, and the sets that wait for them."""
    sets = [one for set_name, one in masked.items() if recipe.masked_samples[set_name].masks == name]
    return MaskWork(candidates=name, sets=[_masked_set(one) for one in sets])


def _masked_set(one: PlannedSet) -> MaskedSet:
    planned = one.sample_set
    return MaskedSet(
        name=planned.name,
        prompt=planned.prompt,
        model=planned.model,
        sampling=planned.sampling,
        seed=planned.seed,
        num_samples=one.num_samples,
        problems_per_shard=planned.problems_per_shard,
        samples_per_shard=planned.samples_per_shard,
    )


def training_work(name: str, recipe: Recipe) -> TrainingSetWork:
    """A training set of the recipe, its options checked."""
    one = recipe.training_sets[name]
    work = TrainingSetWork(
        name=name,
        sample_sets=one.sample_sets,
        training_sets=one.training_sets,
        filters=one.filters,
        choice=one.choice,
        written=one.written,
        licence=one.licence,
        prompt=load_prompt(str(one.written.get("sft_prompt", "code_sft"))),
    )
    check_options(work)
    return work


def coverage_work(recipe: Recipe) -> CoverageWork:
    """The recipe's sets by dataset and strategy."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, one in {**recipe.samples, **recipe.masked_samples}.items():
        found.setdefault((one.problems, one.strategy or name), []).append(name)
    in_order = sorted(found, key=lambda key: list(recipe.problems).index(key[0]))
    return CoverageWork(name="coverage", strategies=[(*key, found[key]) for key in in_order], unions=recipe.unions)


def work_lines(plan: Plan, options: RunRecipeOptions) -> list[tuple[str, str]]:
    """What a launch says of the recipe."""
    planned = [*plan.sets, *plan.masked.values()]
    rows, left = (sum(getattr(one.work, name) for one in planned) for name in ("num_rows", "rows_left"))
    lines = [
        (
            "recipe",
            f"{plan.recipe.name}: {plan.recipe.description}"
            + (f", scale {options.scale:g}" if options.scale != 1 else ""),
        ),
        ("work", f"{len(planned)} sample sets, {len(plan.recipe.training_sets)} training sets"),
        ("left", f"{left:,} of {rows:,} samples"),
        ("model", f"{plan.model.name}, temperature {plan.recipe.sampling.temperature:g}"),
    ]
    if plan.model.name in plan.recipe.variants:
        lines.append(("note", plan.recipe.variants[plan.model.name].description))
    return lines


def picture(plan: Plan, live: Sequence[JobState]) -> None:
    """A bar a stage: how far it is, and what is at work for it."""
    print(f"{plan.run.name}", file=sys.stderr)
    for stage in plan.stages:
        share = stage.done / stage.of if stage.of else 1.0
        bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
        jobs = [job for job in live if is_of(job, stage.name)]
        state = (
            "done"
            if stage.job is None
            else ", ".join(map(_at_work, jobs)) or ("to do" if not stage.done else "unfinished")
        )
        numbers = f"{stage.done:,} of {stage.of:,} {stage.unit}"
        print(f"  {stage.name:<15} {stage.makes:<24} {bar} {numbers:>34}  {state}", file=sys.stderr)


def _at_work(job: JobState) -> str:
    return f"job {job.submission.job_id or job.submission.task_ids[0]}: " + ", ".join(
        f"{count} {state.lower()}" for state, count in job.counts.items()
    )
