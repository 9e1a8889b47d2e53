"""From jobs to something that runs: the options every launch has, what it prints, and the one way to start."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mathmill.errors import UserError

if TYPE_CHECKING:
    from mathmill.launch.cluster import Cluster
    from mathmill.launch.job import Job
    from mathmill.run import Run

Runtime = Literal["none", "apptainer", "singularity", "pyxis", "docker", "podman"]


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
    runtime: Runtime | None = None
    """Instead of the cluster's for server, sandbox and trainer: docker debugs a job on a workstation."""


def cluster_for(options: LaunchOptions) -> "Cluster":
    """The cluster that the options name, with what they replace of it."""
    from mathmill.launch.cluster import Partitions, check_cluster, load_cluster

    cluster = load_cluster(options.cluster)
    if options.partition is not None:
        cluster = replace(cluster, partitions=Partitions(gpu=options.partition, cpu=options.partition))
    if options.time_limit is not None:
        cluster = replace(cluster, time_limit=options.time_limit)
    if options.runtime is not None:
        runtimes = replace(cluster.runtime, server=options.runtime, sandbox=options.runtime, trainer=options.runtime)
        cluster = replace(cluster, runtime=runtimes)
    check_cluster(cluster)
    return cluster


def launch(
    jobs: "Sequence[Job]", cluster: "Cluster", run: "Run", options: LaunchOptions, summary: Sequence[tuple[str, str]]
) -> int:
    """Start the jobs, or show them (`--dry_run`), and give an exit code.

    `summary` is what the stage says of its work, as ("work", "400 problems x 4 samples: 100 done, 1,500 left").
    Local jobs run one after the other in the foreground; the code is the first that is not 0.
    """
    from mathmill.launch.job import split_job
    from mathmill.launch.render import render
    from mathmill.launch.snapshot import code_sha

    parts = [
        part
        for job in jobs
        for part in split_job(job, cluster.max_array_size if cluster.executor == "slurm" else job.tasks)
    ]
    parts = [replace(part, name=_free_name(part.name, run)) for part in parts]
    scripts = [render(part, cluster, run, code_sha()) for part in parts]
    show(_head(parts, cluster, run, summary))
    if options.dry_run:
        for script in scripts:
            sys.stdout.write(script)
        return 0
    if options.test_only:
        return _test_only(parts, scripts, cluster)
    _refuse_while_live(run, options)
    _warn_of_unset(cluster)
    _confirm(parts, cluster, options)
    return _start(parts, scripts, cluster, run)


def show(lines: Sequence[tuple[str, str]]) -> None:
    """Aligned names and values on stderr; the names dim on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for name, value in lines:
        console.print(Text.assemble((name.ljust(11), "dim"), value))


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
        return f"{job.name}: {_count(job.tasks, 'process', 'processes')} here: {steps}"
    each = _count(job.nodes, "node") + (f" with {_count(job.gpus, 'GPU')}" if job.gpus else "")
    limit = job.time_limit or cluster.time_limit
    running = f", at most {cluster.max_running} at a time" if cluster.max_running is not None and job.is_array else ""
    many = f"an array of {job.tasks} tasks{running}, each {each}" if job.is_array else each
    return f"{job.name}: {many}{f', up to {limit}' if limit else ''}: {steps}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _near(path: Path) -> str:
    """Relative to the current folder where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _free_name(name: str, run: "Run") -> str:
    """Scripts are records: a second submission gets a name of its own, NAME-2."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 100_000))
    return next(free for free in names if not (run.jobs / f"{free}.sbatch").exists())


def _refuse_while_live(run: "Run", options: LaunchOptions) -> None:
    from mathmill.launch.status import live_jobs

    if options.add_jobs or not (live := live_jobs(run)):
        return
    named = "; ".join(
        f"{job.submission.name} {job.submission.job_id or ' '.join(job.submission.task_ids)}".strip()
        + " ("
        + ", ".join(f"{count} {state.lower()}" for state, count in job.counts.items())
        + ")"
        for job in live
    )
    raise UserError(
        f"run {run.name} is at work: {named}. Nothing was submitted; add tasks with --add_jobs, "
        f"or stop it: python pipeline/cancel.py {run.name}"
    )


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


def _start(jobs: "Sequence[Job]", scripts: list[str], cluster: "Cluster", run: "Run") -> int:
    from mathmill.files import publish_once
    from mathmill.launch.snapshot import snapshot

    if cluster.executor == "slurm":
        from mathmill.launch.submit import require_slurm

        require_slurm(cluster)
    snapshot(run)
    for folder in (run.jobs, run.logs, run.servers):
        folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "cancelled").unlink(missing_ok=True)
    for job, script in zip(jobs, scripts, strict=True):
        path = run.jobs / f"{job.name}.sbatch"
        publish_once(run.jobs / f"{job.name}.json", json.dumps(job.options, indent=1, sort_keys=True) + "\n")
        publish_once(path, script)
        code = _run_here(path, job, run) if cluster.executor == "local" else _submit(path, job, cluster, run)
        if code:
            return code
    return 0


def _run_here(path: Path, job: "Job", run: "Run") -> int:
    from mathmill.launch.local import run_here

    show([("script", _near(path)), ("logs", f"{_near(run.logs)}/{job.name}.local-*"), *_next(run, "Ctrl-C, or ")])
    print(file=sys.stderr)
    return run_here(path, job.tasks, run)


def _submit(path: Path, job: "Job", cluster: "Cluster", run: "Run") -> int:
    from mathmill.launch.submit import submit

    ids = submit(path, job, cluster, run)
    shown = f"{ids[0].split('_')[0]} ({_count(len(ids), 'task')}: {ids[0]} to {ids[-1]})" if job.is_array else ids[0]
    log = run.logs / f"{job.name}.{ids[0]}.log"
    look = [("job id", shown), ("log", f"tail -F {_near(log)}")]
    show([("script", _near(path)), *look, *_next(run, "")])
    return 0


def _next(run: "Run", stop_first: str) -> list[tuple[str, str]]:
    return [
        ("look", f"python pipeline/status.py {run.name}"),
        ("stop", f"{stop_first}python pipeline/cancel.py {run.name}"),
        ("again", shlex.join(["python", *sys.argv]) + "   (goes on where it stopped)"),
    ]
