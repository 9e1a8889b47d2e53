"""How far a run is and how its jobs fare."""

import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from mathmill.launch.show import count
from mathmill.options import script

if TYPE_CHECKING:
    from mathmill.generation.progress import SetProgress
    from mathmill.launch.status import JobState, TaskState
    from mathmill.launch.submissions import Submission
    from mathmill.run import Run

SHOWN_FAILURES = 3
SHOWN_LINES = 5


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Show how far a run is and how its jobs fare."""

    run: tyro.conf.Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""


def main() -> None:
    script(StatusOptions, show_status)


def show_status(options: StatusOptions) -> int:
    """Print rows done by sample set, then each job's tasks by state, then the ends of the logs of what failed."""
    from mathmill.launch.status import job_states
    from mathmill.run import find_run

    run = find_run(options.run)
    print(f"run {run.name}  ({run.folder})")
    sets = sets_progress(run)
    is_whole = bool(sets) and all(each.num_done == each.num_rows for each in sets)
    for line in [*set_lines(sets), *job_lines(job_states(run), run, is_whole)]:
        print(line)
    sys.stdout.flush()
    return 0


def sets_progress(run: "Run") -> "list[SetProgress]":
    """How far each sample set is; none where the run has no samples."""
    if not run.solutions.is_dir():
        return []
    from mathmill.generation.progress import progress

    return progress(run)


def set_lines(sets: "list[SetProgress]") -> list[str]:
    """A line a sample set: rows done of all, in finished shards and in those that are at work."""
    width = max((len(each.name) for each in sets), default=0)
    return [f"  {each.name:{width}}  {_rows(each)}" for each in sets]


def _rows(each: "SetProgress") -> str:
    done = each.num_done + each.num_in_parts
    more = f"  ({each.num_done:,} in finished shards)" if each.num_in_parts else ""
    return f"{done:>9,} of {each.num_rows:,} rows  {_percent(done, each.num_rows)}{more}"


def job_lines(jobs: "list[JobState]", run: "Run", is_whole: bool = False) -> list[str]:
    """A line a job: its tasks by state, GPU hours and starts.

    Below the newest one with failures, while the run is not whole, stand the ends of their logs.
    """
    if not jobs:
        return ["  no jobs yet"]
    explained = next((job for job in reversed(jobs) if job.failed), None) if not is_whole else None
    lines = []
    for job in jobs:
        lines.append(_job_line(job))
        if job is explained:
            for task in job.failed[:SHOWN_FAILURES]:
                lines += _failure(task, run, job.submission)
            if len(job.failed) > SHOWN_FAILURES:
                lines.append(f"    and {len(job.failed) - SHOWN_FAILURES} more that failed")
    return lines


def _job_line(job: "JobState") -> str:
    line = job.submission
    groups: dict[str, list[TaskState]] = {}
    for task in job.tasks:
        groups.setdefault("waiting to start again" if task.waits_again else task.state.lower(), []).append(task)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    states = ", ".join(f"{len(tasks)} {state}{_remark(state, tasks)}" for state, tasks in ordered)
    hours = sum(task.gpu_hours for task in job.tasks)
    again = sum(task.requeues for task in job.tasks if not task.waits_again)
    more = (f"  {hours:,.1f} GPU hours" if hours else "") + (f"  requeued {_times(again)}" if again else "")
    named = f"job {line.job_id} on {line.cluster}" if line.job_id else line.task_ids[0]
    return f"  {line.name}  {named}: {states}{more}"


def _remark(state: str, tasks: "list[TaskState]") -> str:
    if tasks[0].waits_again:
        return f" ({count(sum(task.requeues for task in tasks), 'requeue')})"
    codes = {_code(task) for task in tasks}
    return f" (exit code {codes.pop()})" if state == "failed" and len(codes) == 1 else ""


def _failure(task: "TaskState", run: "Run", submission: "Submission") -> list[str]:
    from mathmill.launch.submissions import log_of

    log = log_of(run, submission, task.task_id)
    head = f"    {task.task_id} {task.state.lower()} (exit code {_code(task)})"
    if log is None:  # main had the terminal; what the other steps wrote may say why
        own = f"{submission.name}.{task.task_id}."
        logs = sorted(path for path in run.logs.glob("*.log") if path.name.startswith(own))
        return [
            f"{head}; it wrote to its terminal",
            *(line for each in logs for line in [f"    {each}", *_end_of(each)]),
        ]
    if not log.exists():
        return [f"{head}: {log}", "      no log: the job never began, or its node cannot write here"]
    return [f"{head}: {log}", *_end_of(log)]


def _end_of(log: Path) -> list[str]:
    with log.open(errors="replace") as stream:
        return [f"      | {line.rstrip()}" for line in deque(stream, SHOWN_LINES)]


def _code(task: "TaskState") -> str:
    """sacct's `3:0` is exit code 3, and `0:9` the end by signal 9."""
    code, _, number = task.exit_code.partition(":")
    return f"{code}, signal {number}" if number not in ("", "0") else code


def _times(number: int) -> str:
    return "once" if number == 1 else count(number, "time")


def _percent(done: int, rows: int) -> str:
    return f"{100 * done // rows}%" if rows else "-"
