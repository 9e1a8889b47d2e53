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
    """Leave the marker that stops requeues, then end all jobs of the run, on Slurm with one scancel."""
    import socket

    from mathmill.errors import UserError, said_by_disk
    from mathmill.files import write_whole
    from mathmill.launch.status import cancel_jobs, job_states
    from mathmill.launch.submissions import submissions
    from mathmill.run import find_run

    run = find_run(options.run)
    said = []
    try:
        write_whole(run.folder / "cancelled", "")  # first, so that nothing queues again while we look
    except OSError as problem:  # a full disk keeps no job alive
        said.append(
            f"{said_by_disk(problem)}: a job that is near its time limit may queue again, so say this once more"
        )
    try:
        for job in job_states(run):
            line, task_ids = job.submission, [task.task_id for task in job.tasks if task.may_be_live]
            if task_ids and line.executor == "local" and line.host != socket.gethostname():
                said.append(f"{line.name} runs on {line.host}, if at all: give this command there")
            elif task_ids:
                tasks = f"{len(task_ids)} of {len(job.tasks)} tasks"
                said.append(f"stopping {line.name} {line.job_id or line.task_ids[0]} ({tasks})")
    except UserError as problem:  # the accounting is away, and Slurm itself may be there
        said.append(f"every job is told to end, whatever its state: {problem}")
    cancel_jobs(submissions(run))
    for text in said or ["nothing is queued or running"]:
        print(f"run {run.name}: {text}")
    return 0
