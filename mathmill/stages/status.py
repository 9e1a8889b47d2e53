"""How far a run is and how its jobs fare."""

import re
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from mathmill.launch.show import count
from mathmill.options import script

if TYPE_CHECKING:
    from mathmill.generation.progress import SetProgress, ShardCounts
    from mathmill.launch.status import JobState, TaskState
    from mathmill.launch.submissions import Submission
    from mathmill.run import Run

SHOWN_FAILURES = 3
SHOWN_LINES = 5
WATCH_S = 15.0
"""Between two showings, each of which asks the accounting once."""


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Show how far a run is and how its jobs fare."""

    run: tyro.conf.Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""
    watch: bool = False
    """Show it again and again until nothing is queued or running; Ctrl-C ends only the showing."""


def main() -> None:
    script(StatusOptions, show_status)


def show_status(options: StatusOptions) -> int:
    """Print rows by sample set, the rate, each job's tasks by state, the ends of failed logs, and what a finished run cost."""
    from mathmill.run import find_run

    run = find_run(options.run)
    if options.watch:
        return watch(run)
    for line in status_lines(run)[0]:
        print(line)
    sys.stdout.flush()
    return 0


def watch(run: "Run") -> int:
    """Show the status until no job is live. A terminal is drawn anew; elsewhere each showing is a paragraph."""
    import time

    from mathmill.errors import UserError

    is_terminal, is_first = sys.stdout.isatty(), True
    while True:
        try:
            lines, is_live = status_lines(run)
            is_first = False
        except UserError as problem:  # the accounting may be away for a while
            if is_first:
                raise
            lines, is_live = [f"run {run.name}: {problem}"], True
        print(f"\033[H\033[J{time.strftime('%H:%M:%S')}" if is_terminal else time.strftime("%H:%M:%S"))
        print("\n".join(lines) if is_terminal else "\n".join([*lines, ""]), flush=True)
        if not is_live:
            return 0
        time.sleep(WATCH_S)


def status_lines(run: "Run") -> tuple[list[str], bool]:
    """What is shown of a run, from its files and one call of sacct; and whether any of its jobs is queued or runs."""
    from mathmill.launch.status import job_states

    jobs = job_states(run)
    sets = sets_progress(run)
    is_whole = bool(sets) and all(each.num_done == each.num_rows for each in sets)
    is_live = any(job.live for job in jobs)
    lines = [
        f"run {run.name}  ({run.folder})",
        *set_lines(sets, [] if is_whole else shards_of(run)),
        *([] if is_whole else rate_lines(run, sets)),
        *job_lines(jobs, run, is_whole),
        *([] if is_whole else server_lines(run, jobs)),
        *([] if is_live else cost_lines(run, jobs)),
        *(
            ["  nothing is queued or running; the launch command goes on"]
            if sets and not (is_whole or any(task.may_be_live for job in jobs for task in job.tasks))
            else []
        ),
    ]
    return lines, is_live


def sets_progress(run: "Run") -> "list[SetProgress]":
    """How far each sample set is; none where the run has no samples."""
    if not run.solutions.is_dir():
        return []
    from mathmill.generation.progress import progress

    return progress(run)


def shards_of(run: "Run") -> "list[ShardCounts]":
    """What becomes of each set's shards just now."""
    if not run.solutions.is_dir():
        return []
    from mathmill.generation.effort import live_workers
    from mathmill.generation.progress import shard_counts
    from mathmill.generation.sets import set_folders

    live = live_workers(run)
    return [shard_counts(folder, live) for folder in set_folders(run)]


def set_lines(sets: "list[SetProgress]", shards: "list[ShardCounts] | None" = None) -> list[str]:
    """A line a sample set: rows done of all, in finished shards and in those that are at work; its shards, if given."""
    width = max((len(each.name) for each in sets), default=0)
    lines = [f"  {each.name:{width}}  {_rows(each)}" for each in sets]
    counted = [
        f"  shards {each.done:,} done, {each.at_work:,} at work, {each.waiting:,} waiting" for each in shards or []
    ]
    return [line + more for line, more in zip(lines, counted, strict=True)] if counted else lines


def _rows(each: "SetProgress") -> str:
    done = each.num_done + each.num_in_parts
    more = f"  ({each.num_done:,} in finished shards)" if each.num_in_parts else ""
    aside = f"  {each.num_quarantined:,} in quarantine" if each.num_quarantined else ""
    return f"{done:>9,} of {each.num_rows:,} rows  {_percent(done, each.num_rows)}{more}{aside}"


def rate_lines(run: "Run", sets: "list[SetProgress]") -> list[str]:
    """Rows a second of the workers that live, and how long the rest takes at that rate."""
    from mathmill.generation.effort import live_efforts

    live = live_efforts(run)
    rate = sum(effort.rows_per_s for effort in live)
    num_left = sum(each.num_rows - each.num_done - each.num_in_parts for each in sets)
    if not rate or num_left <= 0:
        return []
    return [f"  {rate:,.1f} rows/s by {count(len(live), 'worker')}, about {_clock(num_left / rate)} left"]


def server_lines(run: "Run", jobs: "list[JobState]") -> list[str]:
    """Of shared servers: how many answer just now, and why others will not come back."""
    import time

    from mathmill.serving.shared import LEASE_S, announced, gone_servers

    gone = gone_servers(run.servers)
    there = announced(run.servers, now=time.time())  # who looks may not be allowed to write there
    if not (gone or there):
        return []
    ready = sum(age < LEASE_S for _, age in there.values())
    shown = {task.task_id for job in jobs for task in job.failed}  # their logs are shown
    quiet = [f"    {job}: {one.reason}; its log: {one.log}" for job, one in gone.items() if job not in shown]
    lost = f", {len(gone)} gone for good" if gone else ""
    return [f"  shared servers: {ready} ready now{lost}", *quiet[:SHOWN_FAILURES]]


def cost_lines(run: "Run", jobs: "list[JobState]") -> list[str]:
    """What a run that is over took: time on GPUs (or nodes) over all starts, how much of it idle, and what came of it.

    Rows and tokens are the workers' own counts, which lack the last seconds of a worker that was killed. Idle is the time in
    which a task had no request at its server: starts, ends, and waiting for others.
    """
    from mathmill.generation.effort import efforts

    done = efforts(run)
    busy_s, tokens = sum(each.busy_s for each in done), sum(each.num_tokens for each in done)
    if not busy_s:
        return []
    correct = sum(each.num_correct for each in done)
    made = f"  {tokens / busy_s:,.0f} tokens/s a task at work"
    tasks = [task for job in jobs if job.submission.executor == "slurm" for task in job.tasks]
    hours, gpu_hours = sum(task.hours for task in tasks), sum(task.gpu_hours for task in tasks)
    if not hours:
        return [made]
    spent, unit = (gpu_hours, "GPU") if gpu_hours else (hours, "task")
    # what is busy at shared servers is no part of the workers' own hours
    is_shared = any("pool" in job_options(run, job).get("server", {}) for job in jobs)
    idle = "" if is_shared else f", {max(0.0, 1 - busy_s / 3600 / hours):.0%} of it idle"
    line = f"  {spent:,.2f} {unit} hours over all starts{idle}"
    each = f"; {3600 * spent / correct:,.2f} {unit} seconds a correct solution" if correct else ""
    more = f"; where it went: python pipeline/where_time_went.py {run.name}"
    return [f"{line};{made[1:]}{each}{more}"]


def job_options(run: "Run", job: "JobState") -> dict[str, Any]:
    """The options of a job's steps."""
    import json

    path = (run.jobs / job.submission.script).with_suffix(".json")
    return json.loads(path.read_text()) if path.exists() else {}


def _clock(seconds: float) -> str:
    """`0:42` minutes and seconds, `5:07:00` hours too, `3 days, 4:00:00`."""
    from datetime import timedelta

    return re.sub(r"^0:0?", "", str(timedelta(seconds=round(seconds))))


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
