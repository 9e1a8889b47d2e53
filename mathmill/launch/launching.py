"""From jobs to something that runs: the options every launch has, what it prints, and the one way to start."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mathmill.errors import UserError
from mathmill.launch.cluster import RuntimeName
from mathmill.launch.show import count, show

if TYPE_CHECKING:
    from mathmill.launch.cluster import Cluster
    from mathmill.launch.job import Job
    from mathmill.run import Run


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Where and how a stage's jobs run."""

    cluster: str = "local"
    """A name in cluster_configs/, or a path to a yaml file."""
    num_jobs: int = 1
    """How many tasks share the work: one Slurm array of this size, or as many processes here."""
    run: str | None = None
    """Name of the run, a folder in runs/ (default: made of what is asked, so that the same command resumes)."""
    dry_run: bool = False
    """Print the script that sbatch would get, and write nothing. Needs no Slurm."""
    test_only: bool = False
    """Ask Slurm when and where the job would start, and submit nothing."""
    yes: bool = False
    """Do not ask before a job of many GPU hours."""
    add_jobs: bool = False
    """Submit although jobs of this run are queued or running."""
    time_limit: str | None = None
    """Instead of the cluster's, as "4:00:00" (hours:minutes:seconds)."""
    partition: str | None = None
    """Instead of the cluster's."""
    runtime: RuntimeName | None = None
    """Instead of the cluster's for server, sandbox and trainer: docker debugs a job on a workstation."""


def cluster_for(options: LaunchOptions) -> "Cluster":
    """The cluster that the options name, with what they replace of it; bare steps run under this Python if it names none."""
    from mathmill.launch.cluster import Partitions, check_cluster, load_cluster

    _check_flags(options)
    cluster = load_cluster(options.cluster)
    cluster = replace(cluster, python=cluster.python or sys.executable)
    if options.partition is not None:
        cluster = replace(cluster, partitions=Partitions(gpu=options.partition, cpu=options.partition))
    if options.time_limit is not None:
        cluster = _limited(cluster, options.time_limit)
    if options.runtime is not None:
        runtimes = replace(cluster.runtime, server=options.runtime, sandbox=options.runtime, trainer=options.runtime)
        cluster = replace(cluster, runtime=runtimes)
    check_cluster(cluster)
    return cluster


def _check_flags(options: LaunchOptions) -> None:
    from mathmill.launch.strict_yaml import CONTROL
    from mathmill.launch.times import seconds_of

    for name in ("cluster", "partition", "time_limit"):
        value = getattr(options, name)
        if value == "" or (value and CONTROL.search(value)):
            raise UserError(f"--{name} {value!r} is empty, or holds a line break or a control character")
    if options.time_limit is not None:
        try:
            seconds = seconds_of(options.time_limit)
        except ValueError as problem:
            raise UserError(f"--time_limit: {problem}") from None
        if not seconds:
            raise UserError(f"--time_limit must be more than 0, not '{options.time_limit}'")


def _limited(cluster: "Cluster", time_limit: str) -> "Cluster":
    """The cluster with another time limit; a `stop_before` that does not fit into it gives way to the default."""
    from mathmill.launch.times import seconds_of

    limited = replace(cluster, time_limit=time_limit)
    fits = (limited.stop_before_s or 0) < seconds_of(time_limit)
    return limited if fits else replace(limited, stop_before=None)


def launch(
    jobs: "Sequence[Job]",
    cluster: "Cluster",
    run: "Run",
    options: LaunchOptions,
    summary: Sequence[tuple[str, str]],
    *,
    prepare: Callable[[], None] = lambda: None,
) -> int:
    """Start the jobs, or show them (`--dry_run`), and give an exit code.

    `summary` is what the stage says of its work, as ("work", "400 problems x 4 samples: 100 done, 1,500 left").
    `prepare` writes what the jobs need of the stage: it is called after the last refusal and before anything else is
    written, and never for `--dry_run` or `--test_only`.
    Local jobs run one after the other in the foreground; the code is the first that is not 0.
    """
    from mathmill.launch.job import split_job
    from mathmill.launch.preflight import largest_array, unseen
    from mathmill.launch.render import render
    from mathmill.launch.snapshot import code_sha

    on_slurm = cluster.executor == "slurm"
    pairs = [
        (job, part)
        for job in jobs
        for part in split_job(job, largest_array(cluster, job.tasks) if on_slurm else job.tasks)
    ]
    origins = [job.name for job, _ in pairs]
    parts = [replace(part, name=_free_name(part.name, run)) for _, part in pairs]
    scripts = [render(_waiting(part, {}), cluster, run, code_sha()) for part in parts]
    show(_head(parts, cluster, run, summary))
    _warn_of_unset(cluster)
    if on_slurm and not options.dry_run:
        show([("warning", what) for what in unseen(parts, cluster, run)])
    if options.dry_run:
        for script in scripts:
            sys.stdout.write(script)
        return 0
    if options.test_only:
        return _test_only(parts, [render(part, cluster, run, code_sha()) for part in parts], cluster)
    _refuse_while_live(run, options)
    if cluster.executor == "local":
        _refuse_missing_images(parts, cluster)
    _confirm(parts, cluster, options)
    return _start(parts, origins, cluster, run, prepare)


def _waiting(job: "Job", ids: dict[str, list[str]]) -> "Job":
    """The job with the directives of what it waits for; `ids`: those of earlier jobs of this launch, by their names."""
    if not job.after:
        return job
    on = [each for name in job.after for each in ([name] if name.isdigit() else ids.get(name, [f"ID-of-{name}"]))]
    waits = {"dependency": f"afterany:{':'.join(on)}", "kill-on-invalid-dep": "yes"}
    return replace(job, directives={**job.directives, **waits})


def gpu_hours(jobs: "Sequence[Job]", cluster: "Cluster") -> float | None:
    """The most that the jobs can take before their time limit; None where there is no limit."""
    from mathmill.launch.times import seconds_of

    hours = 0.0
    for job in jobs:
        limit = job.time_limit or cluster.time_limit
        if job.gpus and limit is None:
            return None
        hours += job.tasks * job.nodes * job.gpus * (seconds_of(limit) / 3600 if limit else 0)
    return hours


def _head(
    jobs: "Sequence[Job]", cluster: "Cluster", run: "Run", summary: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    hours = gpu_hours(jobs, cluster)
    asked = f"; ask {cluster.contact}" if cluster.contact else ""
    most = "not known: no time limit" if hours is None else f"at most {hours:,.10g}"
    lines = [("run", _near(run.folder)), ("cluster", f"{cluster.name} ({cluster.file}{asked})"), *summary]
    lines += [("job", _shape(job, cluster)) for job in jobs]
    return [*lines, ("GPU hours", most)] if any(job.gpus for job in jobs) else lines


def _shape(job: "Job", cluster: "Cluster") -> str:
    steps = " + ".join(step.name for step in job.steps)
    if cluster.executor == "local":
        return f"{job.name}: {count(job.tasks, 'process', 'processes')} here: {steps}"
    each = count(job.nodes, "node") + (f" with {count(job.gpus, 'GPU')}" if job.gpus else "")
    limit = job.time_limit or cluster.time_limit
    limit = f"{limit} min" if limit and limit.isdigit() else limit
    running = f", at most {cluster.max_running} at a time" if cluster.max_running is not None and job.is_array else ""
    many = f"an array of {job.tasks} tasks{running}, each {each}" if job.is_array else each
    return f"{job.name}: {many}{f', up to {limit}' if limit else ''}: {steps}"


def _near(path: Path) -> str:
    """Relative to the current folder where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _free_name(name: str, run: "Run") -> str:
    """Scripts are records: a second submission gets a name of its own, NAME-2."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 100_000))
    return next(free for free in names if not any((run.jobs / f"{free}.{end}").exists() for end in ("sbatch", "json")))


def _refuse_while_live(run: "Run", options: LaunchOptions) -> None:
    from mathmill.launch.status import live_jobs

    if options.add_jobs or not (live := live_jobs(run)):
        return
    named = "; ".join(
        f"{job.submission.name} {job.submission.job_id or ' '.join(job.submission.task_ids)}".strip()
        + " ("
        + ", ".join(f"{tasks} {state.lower()}" for state, tasks in job.counts.items())
        + ")"
        for job in live
    )
    raise UserError(
        f"run {run.name} is at work: {named}. Nothing was submitted; add tasks with --add_jobs, "
        f"or stop it: python pipeline/cancel.py {run.name}"
    )


def _refuse_missing_images(jobs: "Sequence[Job]", cluster: "Cluster") -> None:
    """Apptainer takes files; what a cluster's nodes see is not known here, so this is for local runs."""
    from mathmill.launch.render import image_of, runtime_of

    for step in (step for job in jobs for step in job.steps):
        if (runtime := runtime_of(step, cluster)) not in ("apptainer", "singularity"):
            continue
        name, image = image_of(step, cluster)
        if "://" not in image and not (Path(image).is_absolute() and Path(image).exists()):
            there = "is no file" if not Path(image).exists() else "must be a whole path, from / on"
            folder = {"sandbox": "sandbox", "trtllm": "trtllm", "trainer": "megatron"}.get(name)
            recipe = f": containers/{folder}/README.md" if folder else ""
            raise UserError(f"{cluster.file}: images.{name} '{image}' {there}; {runtime} wants a .sif{recipe}")


def _warn_of_unset(cluster: "Cluster") -> None:
    import os

    unset = [name for name in cluster.env if name not in os.environ]
    if unset:
        show([("warning", f"{', '.join(unset)} ({cluster.file}, env) not set here, so not passed to the job")])


def _test_only(jobs: "Sequence[Job]", scripts: list[str], cluster: "Cluster") -> int:
    import tempfile

    if cluster.executor == "local":
        raise UserError(
            "--test_only asks Slurm, and this is a local run; name a cluster with --cluster, or use --dry_run"
        )
    from mathmill.launch.submit import would_start

    with tempfile.TemporaryDirectory(prefix="mathmill-test-") as folder:
        for job, script in zip(jobs, scripts, strict=True):
            path = Path(folder, f"{job.name}.sbatch")
            path.write_text(script)
            show([("slurm", would_start(path, cluster))])
    return 0


def _confirm(jobs: "Sequence[Job]", cluster: "Cluster", options: LaunchOptions) -> None:
    hours, limit = gpu_hours(jobs, cluster), cluster.confirm_gpu_hours
    if options.yes or limit is None or not any(job.gpus for job in jobs) or (hours is not None and hours <= limit):
        return
    taken = "GPU hours without a limit" if hours is None else f"up to {hours:,.10g} GPU hours"
    if not sys.stdin.isatty():
        raise UserError(
            f"this takes {taken}, more than confirm_gpu_hours: {limit:,.10g} of {cluster.file}; say --yes to submit it"
        )
    print(f"This takes {taken}. Submit? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was submitted")


def _start(
    jobs: "Sequence[Job]", origins: list[str], cluster: "Cluster", run: "Run", prepare: Callable[[], None]
) -> int:
    """Start the parts of jobs in their order; `origins`: the name of the job that each is a part of."""
    from mathmill.launch.render import render
    from mathmill.launch.snapshot import code_sha, snapshot

    if cluster.executor == "slurm":
        from mathmill.launch.submit import require_slurm

        require_slurm(cluster)
    prepare()
    snapshot(run)
    for folder in (run.jobs, run.logs, run.servers):
        folder.mkdir(parents=True, exist_ok=True)
    cancelled = run.folder / "cancelled"
    was_cancelled = cancelled.exists()
    cancelled.unlink(missing_ok=True)
    if cluster.executor == "local":
        codes = (_run_here(_written(job, render(job, cluster, run, code_sha()), run), job, run) for job in jobs)
        return next((code for code in codes if code), 0)
    ids: list[str] = []
    try:
        _submit_all(jobs, origins, cluster, run, ids)
    except BaseException:  # Ctrl-C too
        if not ids and was_cancelled:
            cancelled.touch()
        raise
    show(_next(run, ""))
    return 0


def _submit_all(jobs: "Sequence[Job]", origins: list[str], cluster: "Cluster", run: "Run", ids: list[str]) -> None:
    """Submit the jobs in their order, each after those that it waits for; `ids` gets Slurm's id of each.

    Where it ends before the last, those that are of no use alone are cancelled: servers without clients would only wait.
    """
    from mathmill.launch.render import render
    from mathmill.launch.snapshot import code_sha
    from mathmill.launch.status import cancel_jobs
    from mathmill.launch.submissions import submissions
    from mathmill.launch.submit import submit

    of_origin: dict[str, list[str]] = {}
    try:
        for job, origin in zip(jobs, origins, strict=True):
            path = _written(job, render(_waiting(job, of_origin), cluster, run, code_sha()), run)
            try:
                tasks = submit(path, job, cluster, run)
            except BaseException:  # a job that Slurm took meanwhile ends at once without these files
                _take_back(path, run)
                raise
            ids.append(tasks[0].partition("_")[0])
            of_origin.setdefault(origin, []).append(ids[-1])
            _show_submitted(path, job, tasks, run)
    except BaseException:
        if 0 < len(ids) < len(jobs) and not jobs[len(ids)].after:
            with suppress(UserError):  # the first failure is the one to tell
                cancel_jobs(line for line in submissions(run) if line.job_id in ids)
        raise


def _take_back(path: Path, run: "Run") -> None:
    """Remove a script that was never submitted, its options, and the folders that are empty then."""
    for written in (path, path.with_suffix(".json")):
        written.unlink(missing_ok=True)
    for folder in (run.jobs, run.logs, run.servers):
        with suppress(OSError):
            folder.rmdir()


def _written(job: "Job", script: str, run: "Run") -> Path:
    """The job's options and script in RUN/jobs, each written once; UserError where another launch took the name."""
    from mathmill.files import publish_once

    path = run.jobs / f"{job.name}.sbatch"
    options = json.dumps(job.options, indent=1, sort_keys=True) + "\n"
    if not (publish_once(path.with_name(f"{job.name}.json"), options) and publish_once(path, script)):
        raise UserError(f"another launch of {run.name} was first; look with: python pipeline/status.py {run.name}")
    return path


def _run_here(path: Path, job: "Job", run: "Run") -> int:
    from mathmill.launch.local import run_here

    show([("script", _near(path)), ("logs", f"{_near(run.logs)}/{job.name}.local-*"), *_next(run, "Ctrl-C, or ")])
    print(file=sys.stderr)
    code = run_here(path, job.tasks, run)
    if code in (130, 143):
        show([("again", _again()), ("", "goes on where it stopped")])
    return code


def _show_submitted(path: Path, job: "Job", ids: list[str], run: "Run") -> None:
    shown = f"{ids[0].split('_')[0]} ({count(len(ids), 'task')}: {ids[0]} to {ids[-1]})" if job.is_array else ids[0]
    log = run.logs / f"{job.name}.{ids[0]}.log"
    show([("script", _near(path)), ("job id", shown), ("log", f"tail -F {_near(log)}")])


def _next(run: "Run", stop_first: str) -> list[tuple[str, str | list[str]]]:
    return [
        ("look", f"python pipeline/status.py {run.name}"),
        ("stop", f"{stop_first}python pipeline/cancel.py {run.name}"),
        ("again", _again()),
    ]


def _again() -> list[str]:
    return [shlex.quote(word) for word in ("python", *sys.argv)]
