"""What can be known before a job is submitted: Slurm's own limits, and whether its files are where the cluster's file says."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mathmill.launch.cluster import Cluster
from mathmill.launch.job import Job
from mathmill.launch.render import image_of, runtime_of
from mathmill.run import Run

USUAL_MAX_ARRAY_SIZE = 1001
"""Slurm's own default."""
SCONTROL_S = 3.0
OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def largest_array(cluster: Cluster, most_tasks: int) -> int:
    """Tasks that one array may have: the cluster's file says so, or Slurm does; the smaller where both do.

    Slurm is asked only where a job has several tasks.
    """
    asked = _max_array_size() if cluster.executor == "slurm" and most_tasks > 1 else None
    if cluster.max_array_size is None:
        return asked or USUAL_MAX_ARRAY_SIZE
    return min(cluster.max_array_size, asked or cluster.max_array_size)


def _max_array_size() -> int | None:
    if shutil.which("scontrol") is None:
        return None
    try:
        answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=SCONTROL_S)
    except subprocess.TimeoutExpired:  # it tries again for a minute where no controller answers
        return None
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return int(match[1]) if match and int(match[1]) > 0 else None


def unseen(jobs: Sequence[Job], cluster: Cluster, run: Run) -> list[str]:
    """What the jobs need and this machine does not see. Nodes may see more, so these are warnings: the job itself looks again."""
    found = []
    if run.folder.is_relative_to(Path.cwd()) and any(run.folder.is_relative_to(folder) for folder in OF_ONE_MACHINE):
        found.append(f"the run's folder {run.folder} lies where nodes seldom share files: start in a shared folder")
    bare = any(runtime_of(step, cluster) == "none" for job in jobs for step in job.steps)
    if bare and cluster.python and "/" in cluster.python and not os.access(cluster.python, os.X_OK):
        found.append(f"{cluster.file}: no program {cluster.python} (python) here")
    for path in dict.fromkeys(_paths(jobs, cluster)):
        if not Path(path[1]).exists():
            found.append(f"{cluster.file}: {path[0]} {path[1]} is not here")
    return found


def _paths(jobs: Sequence[Job], cluster: Cluster) -> list[tuple[str, str]]:
    """Name and path of every image file and mount of the steps that run in containers."""
    paths = []
    for step in (step for job in jobs for step in job.steps):
        runtime = runtime_of(step, cluster)
        if runtime == "none":
            continue
        name, image = image_of(step, cluster)
        if image.startswith("/"):
            paths.append((f"images.{name}", image))
        if step.role != "sandbox":
            sources = (mount.partition(":")[0] for mount in (*cluster.mounts, *step.mounts))
            paths += [("the mount", source) for source in sources if source.startswith("/")]
    return paths
