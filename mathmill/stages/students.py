"""The second half of a recipe: students are fine-tuned on its training sets, exported, evaluated, and reported together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_type_hints

import msgspec

from mathmill.errors import UserError
from mathmill.evaluation.students import StudentsWork
from mathmill.launch.cluster import Cluster, Model, resolve_model
from mathmill.launch.job import Job, Step
from mathmill.recipes import Recipe, StudentsRecipe
from mathmill.run import Run
from mathmill.selection.work import training_set_folder
from mathmill.stages.evaluation import EvaluationOptions, Wanted, benchmark_words, plan_benchmark, wanted_of
from mathmill.stages.export_checkpoint import SHARD_GB, shard_bytes, weights_job
from mathmill.stages.recipe_stage import Stage
from mathmill.stages.sampling import PlannedSet, SamplingOptions, generation_job, work_of_all
from mathmill.stages.sft import (
    SftOptions,
    finished_steps,
    model_folder,
    processes_per_node,
    refuse_other_options,
    shape_for,
    trainer_options,
    training_job,
)
from mathmill.stages.sft_recipe import Recipe as SftRecipe
from mathmill.stages.sft_recipe import load_recipe as load_sft_recipe
from mathmill.training.layout import mistakes
from mathmill.training.options import TrainerOptions

BASE = "base"
"""What the student is called before any training."""


@dataclass(frozen=True)
class Student:
    """One training: on which set, with which seed."""

    label: str
    trainer: TrainerOptions


@dataclass(frozen=True, kw_only=True)
class Students:
    """All students of a recipe, and how they are trained and evaluated. Nothing is written yet."""

    recipe: Recipe
    run: Run
    base: Model
    sft: SftRecipe
    per_node: int
    students: list[Student]
    wanted: list[Wanted]
    sets: dict[str, list[PlannedSet]]
    """The sample sets of every model's evaluation, `base` first."""


def plan_students(recipe: Recipe, run: Run, options: SamplingOptions, cluster: Cluster) -> Students:
    """The students that a recipe wants. UserError for what cannot be trained or evaluated so."""
    assert recipe.students is not None and recipe.evaluation is not None
    told, evaluation = recipe.students, recipe.evaluation
    base = replace(resolve_model(told.model, cluster, None), name=BASE)
    sft = sft_recipe_of(told, recipe.name)
    per_node = processes_per_node(sft, cluster)
    students = [
        Student(f"{name}-seed{seed}", trainer_of(name, seed, sft, run, cluster))
        for name in told.training_sets
        for seed in told.seeds
    ]
    for wrong in mistakes(
        shape_for(sft, model_folder(sft, cluster)), students[0].trainer, per_node * sft.num_nodes, per_node
    ):
        raise UserError(f"recipe {recipe.name}, students: {wrong}")
    for student in students:
        refuse_other_options(run, student.trainer, f"training-{student.label}")
    asked = EvaluationOptions(
        benchmarks=evaluation.benchmarks, settings=evaluation.settings, seed=options.seed, num_jobs=options.num_jobs
    )  # fmt: skip
    wanted = [wanted_of(word) for word in benchmark_words(evaluation.benchmarks)]
    sets = {
        label: [each for one in wanted for each in plan_benchmark(asked, one, run, replace(base, name=label), label)]
        for label in (BASE, *(student.label for student in students))
    }
    return Students(
        recipe=recipe, run=run, base=base, sft=sft, per_node=per_node, students=students, wanted=wanted, sets=sets
    )


def sft_recipe_of(told: StudentsRecipe, name: str) -> SftRecipe:
    """The recipe of the trainings, with what the students put in the place of its keys. UserError for a key that it has not."""
    known = get_type_hints(SftRecipe)
    if unknown := sorted(set(told.options) - set(known)):
        raise UserError(
            f"recipe {name}, students.options: no key '{unknown[0]}' in recipes/sft; README.md there has all"
        )
    found = replace(load_sft_recipe(told.recipe), **told.options, model=told.model)
    for key in told.options:
        try:
            msgspec.convert(getattr(found, key), known[key], strict=True)
        except msgspec.ValidationError as problem:
            raise UserError(f"recipe {name}, students.options.{key}: {problem}") from None
    if found.steps is None:
        raise UserError(
            f"recipe {name}, students.options: say steps; epochs cannot be counted before the rows are made"
        )
    return replace(found, epochs=None)


def trainer_of(training_set: str, seed: int, sft: SftRecipe, run: Run, cluster: Cluster) -> TrainerOptions:
    """What the training of one student is told."""
    data = str(training_set_folder(run, training_set) / "sft.jsonl")
    trainer = trainer_options(SftOptions(data=data), replace(sft, seed=seed), cluster, run, model_folder(sft, cluster))
    return replace(trainer, folder=str(run.folder / "training" / f"{training_set}-seed{seed}"))


def exported_student(run: Run, label: str) -> Path:
    return run.folder / "exported" / label


def stages_of_students(planned: Students, options: SamplingOptions, cluster: Cluster) -> Iterator[Stage]:
    """Their stages in order; the first needs nothing of the recipe."""
    run, number = planned.run, len(planned.students)
    yield _evaluation("base", [BASE], planned, options, cluster)
    left = [one for one in planned.students if finished_steps(Path(one.trainer.folder)) < (one.trainer.steps or 1)]
    trainings = [
        replace(training_job(one.trainer, planned.sft, planned.per_node), name=f"training-{one.label}") for one in left
    ]
    yield Stage(
        name="training", makes="students", done=number - len(left), of=number, unit="models",
        jobs=tuple(trainings), needs=("data",),
    )  # fmt: skip
    absent = [one for one in planned.students if not exported_student(run, one.label).exists()]
    yield Stage(
        name="export", makes="Hugging Face folders", done=number - len(absent), of=number, unit="models",
        jobs=(_export_job(absent, run),) if absent else (), needs=("training",),
    )  # fmt: skip
    yield _evaluation("evaluation", [one.label for one in planned.students], planned, options, cluster)
    is_there = (run.folder / "report" / "students.json").exists()
    yield Stage(
        name="report", makes="tables, pages", done=int(is_there), of=1, unit="report",
        jobs=() if is_there else (_report_job(planned),), needs=("base", "evaluation"),
    )  # fmt: skip


def _evaluation(name: str, labels: list[str], planned: Students, options: SamplingOptions, cluster: Cluster) -> Stage:
    """A job for each of these models, with a server of its own."""
    jobs = []
    for label in labels:
        work = work_of_all(planned.sets[label])
        folder = planned.base.path if label == BASE else str(exported_student(planned.run, label))
        model = replace(planned.base, name=label, path=folder)
        runs_code = any(one.sample_set.prompt.code for one in planned.sets[label])
        job = generation_job(options, model, work, cluster, runs_code)
        needs = [] if label == BASE else [f"exported/{label}/config.json"]
        section = {**job.options["generation"], "needs": needs, "sums_up": False}
        if work.shards_left:
            jobs.append(replace(job, name=f"evaluation-{label}", options={**job.options, "generation": section}))
    works = [work_of_all(planned.sets[label]) for label in labels]
    rows, left = sum(one.num_rows for one in works), sum(one.rows_left for one in works)
    makes = ", ".join(one.benchmark.title for one in planned.wanted)
    return Stage(
        name=name, makes=makes, done=rows - left, of=rows, unit="solutions",
        jobs=tuple(jobs), needs=() if labels == [BASE] else ("export",),
    )  # fmt: skip


def _export_job(students: list[Student], run: Run) -> Job:
    trainer = students[0].trainer
    exports = []
    for one in students:
        weights = Path(one.trainer.folder, "checkpoints", f"step-{one.trainer.steps:08}", "weights")
        exports.append((str(weights), str(exported_student(run, one.label))))
    section = {"model": trainer.model, "exports": exports, "max_shard_bytes": shard_bytes(SHARD_GB), "dtype": None}
    return weights_job("export", section, (f"{trainer.model}:{trainer.model}:ro",))


def _report_job(planned: Students) -> Job:
    assert planned.recipe.students is not None and planned.recipe.evaluation is not None
    told = planned.recipe.students
    work = StudentsWork(
        base=BASE,
        students={name: [f"{name}-seed{seed}" for seed in told.seeds] for name in told.training_sets},
        control=planned.recipe.evaluation.control,
    )
    step = Step(name="report", role="client", module="mathmill.evaluation.students", main=True)
    return Job(name="report", steps=(step,), options={"report": msgspec.to_builtins(work)})
