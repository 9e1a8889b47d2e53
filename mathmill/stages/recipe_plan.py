"""A recipe as it is asked for: its options, its stages, how far each is, and the jobs that would do the rest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tyro.conf import Positional

from mathmill.errors import UserError
from mathmill.launch.cluster import Cluster, Model
from mathmill.launch.job import Job, Step
from mathmill.launch.show import count
from mathmill.problems import load_problems
from mathmill.prompts import load_prompt
from mathmill.recipes import Recipe, SampleSetRecipe, sft_prompt_of, some_of
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
from mathmill.stages.recipe_stage import Stage
from mathmill.stages.sampling import PlannedSet, SamplingOptions, generation_job, model_of, plan_set, slug, work_of_all
from mathmill.stages.sampling import Work as Samples

if TYPE_CHECKING:
    from mathmill.stages.students import Students

DATA_CPUS = 16
MASKING = "x"
"""What stands for a masked solution while a prompt is tried on problems that have none yet."""


@dataclass(frozen=True, kw_only=True)
class RunRecipeOptions(SamplingOptions):
    """Make what a recipe describes, a dataset, or fine-tuned students too: plan it, submit what is missing, show how far it
    is. The same command again goes on."""

    recipe: Positional[str] = "openmathinstruct-1"
    """A name in recipes/, or a path to a yaml file."""
    scale: float = 1.0
    """The share of the recipe's samples that is made: its root of the problems, and of the samples of each."""
    show: bool = False
    """Only show how far the recipe is."""


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
    students: "Students | None" = None
    stages: tuple[Stage, ...] = ()

    @property
    def evaluations(self) -> list[PlannedSet]:
        """The sample sets of the students' evaluations."""
        return [one for sets in self.students.sets.values() for one in sets] if self.students else []


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
    plan = Plan(recipe=recipe, run=run, model=model, sets=sets, masked=masked)
    stages = tuple(stages_of(plan, options, cluster))
    if recipe.students is None:
        return replace(plan, stages=stages)
    from mathmill.stages.students import plan_students, stages_of_students

    students = plan_students(recipe, run, options, cluster)
    if model.name in students.sets:
        raise UserError(
            f"the teacher is called {model.name}, as a student of this recipe is; give it another name in {cluster.file}"
        )
    before, *after = stages_of_students(students, options, cluster)
    return replace(plan, students=students, stages=(before, *stages, *after))


def masked_problems(run: Run, one: SampleSetRecipe, problems: list[Problem]) -> list[Problem]:
    """The problems of a set with their masked solutions; before there are any, all problems with a letter in their place."""
    found = masked_problems_file(run, one.masks or "")
    if masks_file(run, one.masks or "").exists() and found.stat().st_size:
        return list(read_records(found, Problem))
    return [msgspec.structs.replace(problem, masked_reference_solution=MASKING) for problem in problems]


def stages_of(plan: Plan, options: RunRecipeOptions, cluster: Cluster) -> Iterator[Stage]:
    """The stages of the dataset in their order, those of masks only where the recipe has any."""
    recipe, run, sets, masked = plan.recipe, plan.run, plan.sets, plan.masked

    def sampling(name: str, makes: str, work: Samples, runs_code: bool, needs: list[str], after: str = "") -> Stage:
        job = generation_job(options, plan.model, work, cluster, runs_code)
        told = {**job.options["generation"], "sums_up": False}
        job = replace(job, name=name, options={**job.options, "generation": told}, needs=tuple(needs))
        done = work.num_rows - work.rows_left
        return Stage(
            name=name, makes=makes, done=done, of=work.num_rows, unit="samples",
            jobs=(job,) if work.shards_left else (), needs=(after,) if after else (),
        )  # fmt: skip

    codes = [one.sample_set.prompt.code for one in [*sets, *masked.values()]]
    yield sampling("samples", count(len(sets), "set"), work_of_all(sets), any(codes), [])
    if recipe.masks:
        files = [masks_file(run, name) for name in recipe.masks]
        left = [name for name, file in zip(recipe.masks, files, strict=True) if not file.exists()]
        work = Work(masks=[mask_work(name, recipe, masked) for name in left], processes=data_cpus(cluster))
        yield data_stage("masks", "masked solutions", len(files), len(left), work, cluster, "samples")
        empty = {name for name, file in zip(recipe.masks, files, strict=True)
                 if file.exists() and not masked_problems_file(run, name).stat().st_size}  # fmt: skip
        wanted = [one for name, one in masked.items() if recipe.masked_samples[name].masks not in empty]
        needs = [str(file.relative_to(run.folder)) for file in files]
        yield sampling("masked-samples", count(len(wanted), "set"), work_of_all(wanted), any(codes), needs, "masks")
    folders = {name: training_set_folder(run, name) for name in recipe.training_sets}
    absent = [name for name, folder in folders.items() if not folder.exists()]
    work = Work(
        training_sets=[training_work(name, recipe) for name in absent],
        coverage=[] if (run.folder / "reports" / "coverage.json").exists() and not absent else [coverage_work(recipe)],
        processes=data_cpus(cluster),
    )
    reports = len(work.coverage)
    yield data_stage("data", "training sets, coverage", len(folders) + 1, len(absent) + reports, work, cluster,
                     "masked-samples" if recipe.masks else "samples")  # fmt: skip


def data_stage(name: str, makes: str, of: int, left: int, work: Work, cluster: Cluster, after: str) -> Stage:
    """A stage without a model: one job on CPUs."""
    step = Step(name="selection", role="client", module="mathmill.selection", main=True)
    job = Job(name=name, steps=(step,), options={"selection": msgspec.to_builtins(work)}, cpus=data_cpus(cluster))
    return Stage(
        name=name, makes=makes, done=of - left, of=of, unit="parts", jobs=(job,) if left else (), needs=(after,)
    )


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
        prompt=load_prompt(sft_prompt_of(one)),
    )
    check_options(work)
    return work


def coverage_work(recipe: Recipe) -> CoverageWork:
    """The recipe's sets by dataset and strategy."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, one in {**recipe.samples, **recipe.masked_samples}.items():
        found.setdefault((one.problems, one.strategy or name), []).append(name)
    in_order = sorted(found, key=lambda key: list(recipe.problems).index(key[0]))
    strategies = [(*key, found[key]) for key in in_order]
    return CoverageWork(name="coverage", strategies=strategies, unions=recipe.unions)
