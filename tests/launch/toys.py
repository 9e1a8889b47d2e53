"""A job of toy steps, and the folder it runs in, for the tests of launching."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mathmill.launch.cluster import Cluster, Partitions
from mathmill.launch.job import Job, Step
from mathmill.launch.render import render
from mathmill.run import Run

STEPS = Path(__file__).parent / "steps"
SERVER = Step(
    name="server",
    role="server",
    kind="bundled",
    module="toy_server",
    ready_file="$MATHMILL_RUN/servers/$MATHMILL_JOB.json",
    ready_minutes=1,
    secrets=True,
)
SANDBOX = Step(
    name="sandbox",
    role="sandbox",
    module="toy_sandbox",
    ready_file="$MATHMILL_NODE_DIR/sandbox/socket",
    ready_minutes=1,
)
MAIN = Step(name="generation", role="client", module="toy_main", main=True, secrets=True)
HERE = Cluster(name="local", file="cluster_configs/local.yaml", executor="local", python=sys.executable)
SLURM = Cluster(
    name="test", file="test.yaml", executor="slurm", python=sys.executable, cpus=2, partitions=Partitions(cpu="batch")
)


def toy_job(main: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **changes: Any) -> Job:
    """A server and a main that do what their options say; no `server`: main alone."""
    steps = (MAIN,) if server is None else (SERVER, MAIN)
    job = Job(name="generation", steps=steps, options={"generation": main or {}, "server": server or {}})
    return replace(job, **changes)


def new_run(folder: Path) -> Run:
    """A run with the toys as its code."""
    run = Run(folder)
    for needed in (run.jobs, run.logs, run.servers):
        needed.mkdir(parents=True)
    shutil.copytree(STEPS, run.code / "toys")
    (run.folder / "run.yaml").write_text("{}\n")
    return run


def script_of(job: Job, cluster: Cluster, run: Run) -> Path:
    """The job's script and options, written where a launch would write them."""
    (run.jobs / f"{job.name}.json").write_text(json.dumps(job.options))
    script = run.jobs / f"{job.name}.sbatch"
    script.write_text(render(job, cluster, run, "toys"))
    return script


def notes(run: Run) -> dict[str, list[str]]:
    """What each start of main noted, by JOB-RESTART."""
    return {path.stem: path.read_text().splitlines() for path in sorted((run.folder / "notes").glob("*.txt"))}


def environment(lines: list[str]) -> dict[str, str]:
    """The environment that a toy printed into its notes or its log."""
    return json.loads(next(line for line in lines if line.startswith("environment ")).removeprefix("environment "))


def pid_in(lines: list[str]) -> int:
    return int(next(match[1] for line in lines if (match := re.fullmatch(r"pid (\d+)", line))))


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The condition's first true value; AssertionError when it stays false."""
    last = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < last, f"not within {seconds:.0f} s"
        time.sleep(0.05)
    return value


def gone(pid: int) -> bool:
    """Whether no such process runs; one that only waits to be reaped is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
