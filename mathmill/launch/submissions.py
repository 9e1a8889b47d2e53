"""What was submitted: the lines of RUN/jobs/submitted.jsonl."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import TypeVar

import msgspec

from mathmill.records import line_of
from mathmill.run import Run

Entry = TypeVar("Entry")


class LocalTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task on this machine: its index and the process that runs its script."""

    task: int
    pid: int
    born: str = ""
    """The process's start time in ticks since boot, since a pid alone may be used again."""


class LocalEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a task on this machine ended: `code` as a shell gives it."""

    task_id: str
    code: int


class Submission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job or an array that Slurm took, or a local run."""

    name: str
    script: str
    executor: str
    submitted_at: float
    """Seconds since 1970, by the clock of the machine that launched."""
    job_id: str = ""
    """Slurm's id of the job, or of the array."""
    tasks: int = 1
    is_array: bool = False
    cluster: str = ""
    host: str = ""
    local: list[LocalTask] = []

    @property
    def task_ids(self) -> list[str]:
        """`12345_7` in an array, `12345` alone, `local-PID-TASK` here."""
        if self.executor == "local":
            return [f"local-{task.pid}-{task.task}" for task in self.local]
        return [f"{self.job_id}_{task}" for task in range(self.tasks)] if self.is_array else [self.job_id]


def local_submission(name: str, script: Path, tasks: list[LocalTask]) -> Submission:
    """The line of a run on this machine, whose processes have just started."""
    return Submission(
        name=name,
        script=script.name,
        executor="local",
        submitted_at=time.time(),
        tasks=len(tasks),
        cluster="local",
        host=socket.gethostname(),
        local=[msgspec.structs.replace(task, born=born(task.pid)) for task in tasks],
    )


def append_submission(run: Run, submission: Submission) -> None:
    """Add a line, durably."""
    _append(run.jobs / "submitted.jsonl", submission)


def append_end(run: Run, end: LocalEnd) -> None:
    """Note how a task on this machine ended."""
    _append(run.jobs / "ended.jsonl", end)


def local_ends(run: Run) -> dict[str, int]:
    """Task id to exit code, of the tasks on some machine whose launcher saw their end."""
    return {end.task_id: end.code for end in _lines(run.jobs / "ended.jsonl", LocalEnd)}


def log_of(run: Run, submission: Submission, task_id: str) -> Path | None:
    """Where main's output of a task is; None where it went to the terminal that launched."""
    if submission.executor == "slurm":
        return run.logs / f"{submission.name}.{task_id}.log"
    task = int(task_id.rpartition("-")[2])
    return local_log(run, submission.name, task) if task else None


def local_log(run: Run, name: str, task: int) -> Path:
    """The log of a task on this machine that does not have the terminal."""
    return run.logs / f"{name}.local-{task}.log"


def submissions(run: Run) -> list[Submission]:
    """All lines, oldest first."""
    return _lines(run.jobs / "submitted.jsonl", Submission)


def _append(path: Path, entry: msgspec.Struct) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = line_of(entry)
    while line not in (
        there := path.read_bytes() if path.exists() else b""
    ):  # another node's line may have taken its place
        with path.open("ab") as stream:
            stream.write(line if there.endswith(b"\n") or not there else b"\n" + line)
            stream.flush()
            os.fsync(stream.fileno())


def _lines(path: Path, kind: type[Entry]) -> list[Entry]:
    """Every whole line. What a writer left that was killed, and a last line that is written just now, are passed over."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            found.append(msgspec.json.decode(line, type=kind))
    return found


def born(pid: int) -> str:
    """Start time of a process, or "" where it does not run (or /proc is not there)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def lives(task: LocalTask, host: str) -> bool:
    """Whether this process still runs; only its own machine can tell."""
    return host == socket.gethostname() and task.born != "" and born(task.pid) == task.born
