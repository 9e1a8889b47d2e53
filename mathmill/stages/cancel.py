"""Stop a run's jobs for good."""

from dataclasses import dataclass

import tyro

from mathmill.options import script


@dataclass(frozen=True, kw_only=True)
class CancelOptions:
    """Stop what is queued or running of a run. What is done stays; the launch command goes on from there."""

    run: tyro.conf.Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""


def main() -> None:
    script(CancelOptions, cancel)


def cancel(options: CancelOptions) -> int:
    """Leave the marker that stops requeues, then end all live jobs, on Slurm with one scancel."""
    from mathmill.errors import UserError
    from mathmill.files import write_whole
    from mathmill.launch.status import cancel_jobs, job_states
    from mathmill.launch.submissions import submissions
    from mathmill.run import find_run

    run = find_run(options.run)
    write_whole(run.folder / "cancelled", "")  # first, so that nothing queues again while we look
    try:
        live = [job for job in job_states(run) if job.may_be_live]
    except UserError as problem:  # the accounting is away, and Slurm itself may be there
        cancel_jobs(submissions(run))
        print(f"run {run.name}: every job was told to end, whatever its state: {problem}")
        return 0
    cancel_jobs(job.submission for job in live)
    if not live:
        print(f"run {run.name}: nothing is queued or running")
    for job in live:
        line = job.submission
        tasks = f"{len(job.live)} of {len(job.tasks)} tasks" if job.live else "its state is not known"
        print(f"run {run.name}: stopping {line.name} {line.job_id or line.task_ids[0]} ({tasks})")
    return 0
