"""How a run's jobs fare: one sacct call for those on Slurm, the process table for those here."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mathmill.errors import UserError
from mathmill.launch.submissions import Submission, lives, local_ends, submissions
from mathmill.run import Run

LIVE = {
    "PENDING",
    "RUNNING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "SPECIAL_EXIT",
}
FAILED = {"FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
STOPPED_CODES = {75, 130, 143}
"""Of a local task: drained with work left, Ctrl-C, and TERM or HUP."""
NOT_YET_KNOWN_S = 300
"""The accounting may hear of a job late: for so long an id it does not know counts as pending."""


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """A task's latest state in sacct's words; hours are those of all its starts."""

    task_id: str
    state: str
    exit_code: str = ""
    starts: int = 1
    gpu_hours: float = 0.0
    hours: float = 0.0
    """Time on its nodes."""

    @property
    def requeues(self) -> int:
        """How often it was queued again."""
        return self.starts - (self.state != "REQUEUED")

    @property
    def may_be_live(self) -> bool:
        """Whether it is queued or runs, for all that is known here."""
        return self.state in {*LIVE, "UNKNOWN"} or self.state.startswith("on ")

    @property
    def waits_again(self) -> bool:
        """Whether it ran before and now waits for its next start."""
        return self.state in {"REQUEUED", "PENDING"} and self.requeues > 0


@dataclass(frozen=True, kw_only=True)
class JobState:
    """A submission and its tasks, in order of their index."""

    submission: Submission
    tasks: list[TaskState]

    @property
    def counts(self) -> dict[str, int]:
        """State to tasks, most first."""
        return dict(Counter(task.state for task in self.tasks).most_common())

    @property
    def live(self) -> list[TaskState]:
        return [task for task in self.tasks if task.state in LIVE]

    @property
    def failed(self) -> list[TaskState]:
        return [task for task in self.tasks if task.state in FAILED]


def job_states(run: Run) -> list[JobState]:
    """Every submission of a run, oldest first. UserError where sacct is needed and does not answer."""
    lines = submissions(run)
    on_slurm = [line.job_id for line in lines if line.executor == "slurm"]
    rows = read_sacct(_sacct(on_slurm)) if on_slurm else {}
    ends = local_ends(run)
    return [
        JobState(
            submission=line, tasks=_local_tasks(line, ends) if line.executor == "local" else _slurm_tasks(line, rows)
        )
        for line in lines
    ]


def live_jobs(run: Run) -> list[JobState]:
    """Submissions with a task that is queued or runs."""
    return [job for job in job_states(run) if job.live]


def cancel_jobs(jobs: Iterable[Submission]) -> None:
    """End what is queued or runs of these: one scancel for all of Slurm's, TERM to the scripts here."""
    jobs = list(jobs)
    for job in jobs:
        for task in job.local:
            if lives(task, job.host):
                os.kill(task.pid, signal.SIGTERM)
    ids = [job.job_id for job in jobs if job.executor == "slurm"]
    if not ids:
        return
    if shutil.which("scancel") is None:
        raise UserError(
            f"no scancel on this machine, which ends jobs {', '.join(ids)}: run this on a login node of the cluster"
        )
    answer = subprocess.run(["scancel", "--quiet", *ids], capture_output=True, text=True)  # quiet: some may be over
    if answer.returncode:
        raise UserError(f"scancel {' '.join(ids)} failed: {answer.stderr.strip()}")


def read_sacct(text: str) -> dict[str, TaskState]:
    """Task id to its state, from `sacct --parsable2 --duplicates` lines JobID|State|ExitCode|ElapsedRaw|AllocTRES.

    Earlier starts of a requeued task come before its latest. Tasks that wait stand together: 123_[4,7-9%32].
    """
    states: dict[str, TaskState] = {}
    for line in text.splitlines():
        job_id, state, exit_code, elapsed, tres = line.split("|")[:5]
        gpus = re.search(r"gres/gpu=(\d+)", tres)
        hours = int(elapsed or 0) / 3600
        gpu_hours = hours * (int(gpus[1]) if gpus else 0)
        for task_id in expand(job_id):
            earlier = states.get(task_id)
            states[task_id] = TaskState(
                task_id=task_id,
                state=state.split()[0] if state else "UNKNOWN",  # "CANCELLED by 1000"
                exit_code=exit_code,
                starts=earlier.starts + 1 if earlier else 1,
                gpu_hours=gpu_hours + (earlier.gpu_hours if earlier else 0.0),
                hours=hours + (earlier.hours if earlier else 0.0),
            )
    return states


def expand(job_id: str) -> list[str]:
    """`123_[4,7-9%32]` is 123_4, 123_7, 123_8, 123_9."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    tasks: list[int] = []
    for part in match[2].split(","):
        numbers = [int(number) for number in re.split(r"[-:]", part)]
        tasks.extend(
            range(numbers[0], numbers[-1 if len(numbers) < 3 else 1] + 1, numbers[2] if len(numbers) == 3 else 1)
        )
    return [f"{match[1]}_{task}" for task in tasks]


def _sacct(ids: list[str]) -> str:
    if shutil.which("sacct") is None:
        raise UserError(
            f"no sacct on this machine, which knows the states of jobs {', '.join(ids)}: run this on a login node of the cluster"
        )
    command = [
        "sacct",
        f"--jobs={','.join(ids)}",
        "--allocations",
        "--duplicates",
        "--noheader",
        "--parsable2",
        "--format=JobID,State,ExitCode,ElapsedRaw,AllocTRES",
    ]
    # without the variable a long list of waiting tasks is cut at 64 characters (sacct's manual)
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SLURM_BITSTR_LEN": "0"})
    if answer.returncode:
        raise UserError(
            f"sacct does not answer: {' '.join(answer.stderr.split()) or f'exit code {answer.returncode}'}; try again in a minute"
        )
    return answer.stdout


def _slurm_tasks(line: Submission, rows: dict[str, TaskState]) -> list[TaskState]:
    young = time.time() - line.submitted_at < NOT_YET_KNOWN_S
    unknown = "PENDING" if young else "UNKNOWN"
    return [rows.get(task_id) or TaskState(task_id=task_id, state=unknown) for task_id in line.task_ids]


def _local_tasks(line: Submission, ends: dict[str, int]) -> list[TaskState]:
    return [
        _local_state(task_id, lives(task, line.host), line.host, ends.get(task_id))
        for task_id, task in zip(line.task_ids, line.local, strict=True)
    ]


def _local_state(task_id: str, is_alive: bool, host: str, code: int | None) -> TaskState:
    if code is None:
        here = host == socket.gethostname()
        # nobody noted the end of a task whose launcher was killed, or whose machine went down
        return TaskState(task_id=task_id, state=f"on {host}" if not here else "RUNNING" if is_alive else "INTERRUPTED")
    state = "COMPLETED" if code == 0 else "INTERRUPTED" if code in STOPPED_CODES else "FAILED"
    return TaskState(task_id=task_id, state=state, exit_code=str(code))
