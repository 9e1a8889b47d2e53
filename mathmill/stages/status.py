"""How far a run is and how its jobs fare."""

import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from mathmill.options import script

if TYPE_CHECKING:
    from mathmill.launch.status import JobState, TaskState
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
    for line in set_lines(run):
        print(line)
    jobs = job_states(run)
    for line in job_lines(jobs, run):
        print(line)
    sys.stdout.flush()
    return 0


def set_lines(run: "Run") -> list[str]:
    """A line a sample set: rows done of all."""
    if not run.solutions.is_dir():
        return []
    from mathmill.generation.shards import progress

    sets = progress(run)
    width = max((len(each.name) for each in sets), default=0)
    return [
        f"  {each.name:{width}}  {each.num_done:>9,} of {each.num_rows:,} rows  {_percent(each.num_done, each.num_rows)}"
        for each in sets
    ]


def job_lines(jobs: "list[JobState]", run: "Run") -> list[str]:
    """A line a job: its tasks by state, GPU hours and starts; below it the tasks that failed, with the ends of their logs."""
    if not jobs:
        return ["  no jobs yet"]
    lines = []
    for job in jobs:
        line = job.submission
        states = ", ".join(f"{count} {state.lower()}" for state, count in job.counts.items())
        hours, again = sum(task.gpu_hours for task in job.tasks), sum(task.starts - 1 for task in job.tasks)
        more = (f"  {hours:,.1f} GPU hours" if hours else "") + (f"  requeued {again} times" if again else "")
        lines.append(f"  {line.name}  {line.job_id or line.task_ids[0]} on {line.cluster}: {states}{more}")
        for task in job.failed[:SHOWN_FAILURES]:
            lines += _failure(task, run, line.name)
        if len(job.failed) > SHOWN_FAILURES:
            lines.append(f"    and {len(job.failed) - SHOWN_FAILURES} more that failed")
    return lines


def _failure(task: "TaskState", run: "Run", name: str) -> list[str]:
    log = run.logs / f"{name}.{task.task_id}.log"
    lines = [f"    {task.task_id} {task.state.lower()} (exit code {task.exit_code}): {log}"]
    if not log.exists():
        return [*lines, "      no log: the job never began, or its node cannot write here"]
    with log.open(errors="replace") as stream:
        return [*lines, *(f"      | {line.rstrip()}" for line in deque(stream, SHOWN_LINES))]


def _percent(done: int, rows: int) -> str:
    return f"{100 * done // rows}%" if rows else "-"
