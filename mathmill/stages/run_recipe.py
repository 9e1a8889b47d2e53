"""Stage: a whole recipe, from sample sets to training sets and students, in at most one sbatch call a job."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from mathmill.errors import UserError
from mathmill.generation.sets import create_set
from mathmill.launch.job import Job
from mathmill.launch.launching import cluster_for, launch
from mathmill.launch.show import count
from mathmill.launch.status import JobState, live_jobs
from mathmill.options import script
from mathmill.recipes import load_recipe
from mathmill.stages.recipe_plan import Plan, RunRecipeOptions, Stage, plan_recipe
from mathmill.stages.sampling import BUNDLED_MODEL, create_run, refuse_contradictory_server


def main() -> None:
    script(RunRecipeOptions, run_recipe)


def run_recipe(options: RunRecipeOptions) -> int:
    """Launch the stages that are not done, each after those before it; a finished recipe does nothing."""
    refuse_contradictory_server(options)
    if not 0 < options.scale <= 1:
        raise UserError(f"--scale must be above 0 and at most 1, not {options.scale}")
    if options.server_jobs or options.retry_quarantined:
        raise UserError(
            "--server_jobs and --retry_quarantined are not for recipes; see run_generation.py and run_evaluation.py"
        )
    cluster = cluster_for(options)
    recipe = load_recipe(options.recipe)
    if options.model is None and options.server_address is None:
        options = replace(options, model=BUNDLED_MODEL if cluster.executor == "local" else recipe.model)
    plan = plan_recipe(options, recipe, cluster)
    live = live_jobs(plan.run) if plan.run.config.exists() and not options.dry_run else []
    picture(plan, live)
    if options.show:
        return 0
    if all(not stage.jobs for stage in plan.stages) and not (options.dry_run or options.test_only):
        print(f"{plan.run.folder} is finished; nothing to do", file=sys.stderr)
        _say_report(plan)
        return 0

    def prepare() -> None:
        from mathmill.evaluation.sets import keep_benchmark

        create_run(plan.run)
        for one in [*plan.sets, *plan.evaluations]:
            create_set(plan.run, one.sample_set, one.problems).grow(one.num_samples)
        if plan.students is not None:
            from mathmill.stages.students import keep_students

            keep_students(plan.students)
            for wanted in plan.students.wanted:
                keep_benchmark(plan.run, wanted.name, wanted.benchmark, wanted.asked)

    jobs = waiting_jobs(plan.stages, live)
    if live and not jobs:
        print(f"{plan.run.folder}: all that is missing is queued or running; nothing was submitted", file=sys.stderr)
        return 0
    if live and cluster.executor == "local":
        raise UserError(f"{plan.run.folder} is at work in another terminal; nothing was started")
    launched = replace(options, add_jobs=True) if live else options
    code = launch(jobs, cluster, plan.run, launched, work_lines(plan, options), prepare=prepare)
    if cluster.executor == "local" and code == 0 and not options.dry_run:
        picture(plan_recipe(options, recipe, cluster), [])
        _say_report(plan)
    return code


def waiting_jobs(stages: Sequence[Stage], live: Sequence[JobState]) -> list[Job]:
    """The jobs that are left and not at work, in order, each after those of the stages that it needs."""
    jobs: list[Job] = []
    known: dict[str, list[str]] = {}
    """Names and ids of the jobs of the stages so far."""
    for stage in stages:
        after = tuple(each for name in stage.needs for each in known[name])
        known[stage.name] = []
        for job in stage.jobs:
            at_work = [each.submission.job_id for each in live if is_of(each, job.name)]
            if not at_work:
                jobs.append(replace(job, after=after))
            known[stage.name] += filter(None, at_work) if at_work else [job.name]
    return jobs


def is_of(job: JobState, planned: str) -> bool:
    """Whether a submission was of this planned job: its name may go on with a number, or with a part of an array."""
    name = job.submission.name
    return name == planned or (
        name.startswith(f"{planned}-") and name[len(planned) + 1 :].removeprefix("part").replace("-", "").isdigit()
    )


def _say_report(plan: Plan) -> None:
    if plan.students is not None:
        print(f"report     {plan.run.folder / 'reports' / 'students' / 'index.html'}", file=sys.stderr)


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
        ("work", f"{count(len(planned), 'sample set')}, {count(len(plan.recipe.training_sets), 'training set')}"),
        ("left", f"{left:,} of {rows:,} samples"),
        ("model", f"{plan.model.name}, temperature {plan.recipe.sampling.temperature:g}"),
    ]
    if plan.students is not None:
        from mathmill.stages.students import other_prompts

        sft, one = plan.students.sft, plan.students.students[0].trainer
        lines.append(
            (
                "students",
                f"{len(plan.students.students)} times {sft.model}: {one.steps:,} steps of {one.global_batch}, tensor "
                f"{one.tensor_parallel} x pipeline {one.pipeline_parallel}; evaluated on "
                f"{', '.join(wanted.benchmark.title for wanted in plan.students.wanted)} before and after",
            )
        )
        lines.append(("memory", f"{plan.students.memory}, of a student's training"))
        lines += [("warning", text) for text in other_prompts(plan.students)]
    if plan.model.name in plan.recipe.variants:
        lines.append(("note", plan.recipe.variants[plan.model.name].description))
    return lines


def picture(plan: Plan, live: Sequence[JobState]) -> None:
    """A bar a stage: how far it is, and what is at work for it."""
    print(f"{plan.run.name}", file=sys.stderr)
    for stage in plan.stages:
        share = stage.done / stage.of if stage.of else 1.0
        bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
        jobs = [each for each in live if any(is_of(each, job.name) for job in stage.jobs)]
        state = (
            "done"
            if not stage.jobs
            else ", ".join(map(_at_work, jobs)) or ("to do" if not stage.done else "unfinished")
        )
        numbers = f"{stage.done:,} of {stage.of:,} {stage.unit}"
        print(f"  {stage.name:<15} {stage.makes:<24} {bar} {numbers:>34}  {state}", file=sys.stderr)


def _at_work(job: JobState) -> str:
    return f"job {job.submission.job_id or job.submission.task_ids[0]}: " + ", ".join(
        f"{count} {state.lower()}" for state, count in job.counts.items()
    )
