"""The second half of a recipe: students are fine-tuned on its training sets, exported, evaluated, and reported together."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from mathmill.errors import UserError
from mathmill.evaluation.students import StudentsWork, reported
from mathmill.files import write_whole
from mathmill.launch.cluster import Cluster, Model, resolve_model
from mathmill.launch.job import Job, Step
from mathmill.prompts import load_prompt
from mathmill.recipes import BASE, Recipe, StudentsRecipe, sft_prompt_of
from mathmill.run import Run
from mathmill.selection.work import training_set_folder
from mathmill.stages.evaluation import EvaluationOptions, Wanted, benchmark_words, plan_benchmark, wanted_of
from mathmill.stages.export_checkpoint import SHARD_GB, shard_bytes, weights_job
from mathmill.stages.recipe_stage import Stage
from mathmill.stages.sampling import PlannedSet, SamplingOptions, Work, generation_job, work_of_all
from mathmill.stages.sft import (
    SftOptions,
    finished_steps,
    memory_line,
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


@dataclass(frozen=True)
class Student:
    """One training: on which set, with which seed."""

    training_set: str
    seed: int
    trainer: TrainerOptions

    @property
    def label(self) -> str:
        return f"{self.training_set}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Students:
    """All students of a recipe, and how they are trained and evaluated. Nothing is written yet."""

    recipe: Recipe
    run: Run
    base: Model
    sft: SftRecipe
    per_node: int
    memory: str
    """What one of a training's processes takes, as estimated."""
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
        Student(name, seed, trainer_of(name, seed, sft, run, cluster))
        for name in told.training_sets
        for seed in told.seeds
    ]
    shape, processes = shape_for(sft, model_folder(sft, cluster)), per_node * sft.num_nodes
    for wrong in mistakes(shape, students[0].trainer, processes, per_node):
        raise UserError(f"recipe {recipe.name}, students: {wrong}")
    memory = memory_line(students[0].trainer, shape, cluster, processes)
    refuse_other_students(run, what_students_are(recipe, sft, base))
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
        recipe=recipe, run=run, base=base, sft=sft, per_node=per_node, memory=memory, students=students, wanted=wanted,
        sets=sets,
    )  # fmt: skip


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


def what_students_are(recipe: Recipe, sft: SftRecipe, base: Model) -> dict[str, Any]:
    """What may not change once a run has students: what they begin as, how they learn, and from what."""
    assert recipe.students is not None
    sets = {name: msgspec.to_builtins(recipe.training_sets[name]) for name in recipe.students.training_sets}
    return {"model": base.path, "recipe": asdict(sft), "training_sets": sets}


def refuse_other_students(run: Run, now: dict[str, Any]) -> None:
    """UserError where the run was begun with other students; seeds and training sets may be added."""
    path = run.folder / "students.yaml"
    if not path.exists():
        return
    kept = msgspec.yaml.decode(path.read_bytes())
    for section in ("recipe", "training_sets"):
        for key in now[section]:
            if key in kept[section] and kept[section][key] != now[section][key]:
                raise UserError(
                    f"run {run.name} was begun with another {key} of its students; use another --run, or that"
                )
    if kept["model"] != now["model"]:
        raise UserError(f"run {run.name} was begun with the student {kept['model']}; use another --run, or that")


def keep_students(planned: Students) -> None:
    """Write what the students of the run are."""
    now = what_students_are(planned.recipe, planned.sft, planned.base)
    path = planned.run.folder / "students.yaml"
    if path.exists():
        kept = msgspec.yaml.decode(path.read_bytes())
        now["training_sets"] = kept["training_sets"] | now["training_sets"]
    write_whole(path, msgspec.yaml.encode(now))


def other_prompts(planned: Students) -> list[str]:
    """What is to be said where students are asked with another prompt than the one that they learn from."""
    said = []
    for name in dict.fromkeys(one.training_set for one in planned.students):
        learnt = load_prompt(sft_prompt_of(planned.recipe.training_sets[name]))
        asked = {one.sample_set.prompt.name: one.sample_set.prompt for one in planned.sets[BASE]}
        if differing := [prompt.name for prompt in asked.values() if prompt.sha != learnt.sha]:
            said.append(
                f"students learn {name} with prompt {learnt.name} (written.sft_prompt) and are evaluated with "
                f"{', '.join(differing)}"
            )
    return said


def exported_student(run: Run, label: str) -> Path:
    return run.folder / "exported" / label


def stages_of_students(planned: Students, options: SamplingOptions, cluster: Cluster) -> Iterator[Stage]:
    """Their stages in order; the first needs nothing of the recipe."""
    run, number = planned.run, len(planned.students)
    base = _evaluation("base", [BASE], planned, options, cluster)
    yield base
    left = [one for one in planned.students if finished_steps(Path(one.trainer.folder)) < (one.trainer.steps or 1)]
    trainings = [
        replace(
            training_job(one.trainer, planned.sft, planned.per_node),
            name=f"training-{one.label}",
            needs=(str(Path(one.trainer.data[0]).relative_to(run.folder)),),
        )
        for one in left
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
    evaluation = _evaluation(
        "evaluation", [one.label for one in planned.students], planned, options, cluster, ("export",)
    )
    yield evaluation
    work = _report_work(planned)
    is_done = not (base.jobs or evaluation.jobs) and reported(run) == work
    step = Step(name="report", role="client", module="mathmill.evaluation.students", main=True)
    job = Job(name="report", steps=(step,), options={"report": msgspec.to_builtins(work)})
    yield Stage(
        name="report", makes="tables, pages", done=int(is_done), of=1, unit="report",
        jobs=() if is_done else (job,), needs=("base", "evaluation"),
    )  # fmt: skip


def _evaluation(
    name: str,
    labels: list[str],
    planned: Students,
    options: SamplingOptions,
    cluster: Cluster,
    after: tuple[str, ...] = (),
) -> Stage:
    """A job for each of these models, with a server of its own."""
    works = {label: work_of_all(planned.sets[label]) for label in labels}
    unfinished = [label for label, work in works.items() if work.shards_left]
    jobs = []
    for label in unfinished:
        num_jobs = tasks_of_evaluation(works[label], len(unfinished), options)
        own_server = replace(options, server=None, server_address=None, server_jobs=0, client_jobs=1, num_jobs=num_jobs)
        folder = planned.base.path if label == BASE else str(exported_student(planned.run, label))
        model = replace(planned.base, name=label, path=folder)
        runs_code = any(one.sample_set.prompt.code for one in planned.sets[label])
        job = generation_job(own_server, model, works[label], cluster, runs_code)
        needs = () if label == BASE else (f"exported/{label}/config.json",)
        section = {**job.options["generation"], "sums_up": False}
        sections = {**job.options, "generation": section}
        jobs.append(replace(job, name=f"evaluation-{label}", options=sections, needs=needs))
    rows, left = sum(one.num_rows for one in works.values()), sum(one.rows_left for one in works.values())
    makes = ", ".join(one.benchmark.title for one in planned.wanted)
    return Stage(name=name, makes=makes, done=rows - left, of=rows, unit="solutions", jobs=tuple(jobs), needs=after)


def tasks_of_evaluation(work: Work, num_models: int, options: SamplingOptions) -> int:
    """Tasks for one of several models: a share of those asked for, each with enough to fill its server once."""
    return max(1, min(options.num_jobs // num_models, work.rows_left // options.max_in_flight))


def _export_job(students: list[Student], run: Run) -> Job:
    trainer = students[0].trainer
    exports = []
    for one in students:
        weights = Path(one.trainer.folder, "checkpoints", f"step-{one.trainer.steps:08}", "weights")
        exports.append((str(weights), str(exported_student(run, one.label))))
    section = {"model": trainer.model, "exports": exports, "max_shard_bytes": shard_bytes(SHARD_GB), "dtype": None}
    return weights_job("export", section, (f"{trainer.model}:{trainer.model}:ro",))


def _report_work(planned: Students) -> StudentsWork:
    assert planned.recipe.evaluation is not None
    groups: dict[str, list[str]] = {}
    for one in planned.students:
        groups.setdefault(one.training_set, []).append(one.label)
    sets = {one.sample_set.name: one.num_samples for each in planned.sets.values() for one in each}
    rows = {name: planned.recipe.training_sets[name].choice.get("num_samples") for name in groups}
    return StudentsWork(base=BASE, students=groups, control=planned.recipe.evaluation.control, sets=sets, rows=rows)
