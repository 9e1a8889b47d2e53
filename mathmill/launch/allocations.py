"""When each start of a task had its allocation: one sacct call for those on Slurm, the launcher's notes for those here."""

import os
import re
import subprocess
from dataclasses import dataclass

from mathmill.errors import UserError
from mathmill.launch.submissions import submissions
from mathmill.run import Run


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A start of a task, from the moment its resources were its own until they were given back. Seconds since 1970."""

    job: str
    """Name of the launch: RUN/jobs/NAME.sbatch."""
    task_id: str
    restart: int
    begun: float
    ended: float | None
    """None: it still runs, or nobody noted its end."""
    gpus: int


def allocations(run: Run) -> list[Allocation]:
    """Every start of every task of a run, oldest launch first."""
    lines = submissions(run)
    ids = [line.job_id for line in lines if line.executor == "slurm"]
    starts = read_allocations(_sacct(ids)) if ids else {}
    starts |= {
        task: [(line.submitted_at, None, 0)] for line in lines if line.executor == "local" for task in line.task_ids
    }
    return [
        Allocation(job=line.name, task_id=task, restart=restart, begun=begun, ended=ended, gpus=gpus)
        for line in lines
        for task in line.task_ids
        for restart, (begun, ended, gpus) in enumerate(starts.get(task, []))
    ]


def read_allocations(text: str) -> dict[str, list[tuple[float, float | None, int]]]:
    """Task id to (begun, ended, GPUs) of each of its starts, from sacct's lines JobID|Start|End|AllocTRES with times as %s."""
    found: dict[str, list[tuple[float, float | None, int]]] = {}
    for line in text.splitlines():
        task_id, begun, ended, tres = line.split("|")[:4]
        if not begun.isdigit():  # it waits
            continue
        gpus = re.search(r"gres/gpu=(\d+)", tres)
        end = float(ended) if ended.isdigit() else None
        found.setdefault(task_id, []).append((float(begun), end, int(gpus[1]) if gpus else 0))
    return found


def _sacct(ids: list[str]) -> str:
    command = ["sacct", f"--jobs={','.join(ids)}", "--allocations", "--duplicates", "--noheader", "--parsable2"]
    try:
        answer = subprocess.run(
            [*command, "--format=JobID,Start,End,AllocTRES"],
            capture_output=True,
            text=True,
            env={**os.environ, "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"},
        )
    except FileNotFoundError:
        raise UserError(
            "no sacct on this machine, which knows when the jobs ran: run this on a login node of the cluster"
        ) from None
    if answer.returncode:
        said = answer.stderr.strip().partition("\n")[0]
        raise UserError(f"sacct does not answer: {said}; try again in a minute")
    return answer.stdout
