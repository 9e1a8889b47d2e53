"""Steps under a real Apptainer: what they see, that they end in order, and the same inside a Slurm job."""

import errno
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mathmill.launch.cluster import Cluster, Runtimes
from mathmill.launch.job import Job
from mathmill.launch.local import run_here
from mathmill.launch.submit import submit
from mathmill.run import Run
from tests.launch.toys import HERE, MAIN, SANDBOX, SERVER, SLURM, environment, new_run, notes, script_of, toy_job

pytestmark = [pytest.mark.apptainer, pytest.mark.slow]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "demo")


def contained(cluster: Cluster, sif: Path) -> Cluster:
    runtimes = Runtimes(server="apptainer", sandbox="apptainer", client="none")
    return replace(cluster, runtime=runtimes, images={"sandbox": str(sif), "server": str(sif)}, env=["HF_TOKEN"])


def job_of(run: Run, port: int) -> Job:
    look_at = [str(run.folder / "run.yaml"), str(run.code / "toys"), __file__]
    server = replace(SERVER, kind="trtllm")
    sandbox = {"look_at": look_at, "port": port}
    return toy_job(steps=(server, SANDBOX, MAIN), options={"server": {}, "sandbox": sandbox, "generation": {}})


def check_what_steps_saw(run: Run) -> None:
    logs = {path.suffixes[-2]: path.read_text().splitlines() for path in run.logs.glob("*.log")}
    sandbox, server = environment(logs[".sandbox"]), environment(logs[".server"])
    assert server["HF_TOKEN"] == "hf_secret_value" and server["HOME"] == "/tmp"
    assert "hf_secret_value" not in json.dumps(sandbox) and sandbox["HOME"] == "/nonexistent"
    assert sandbox["PYTHONPATH"] == server["PYTHONPATH"] == f"{run.code}/toys"
    sees = json.loads(next(line for line in logs[".sandbox"] if line.startswith("sees")).removeprefix("sees "))
    assert sees[str(run.code / "toys")] and not sees[str(run.folder / "run.yaml")] and not sees[__file__]
    assert f"network {errno.ECONNREFUSED}" in logs[".sandbox"] or f"network {errno.ENETUNREACH}" in logs[".sandbox"]
    assert logs[".server"][-1] == logs[".sandbox"][-1] == "ended in order"
    [lines] = notes(run).values()
    assert lines[-1] == "ended 0"


@pytest.fixture(autouse=True)
def surroundings(apptainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (*apptainer.env.items(), ("HF_TOKEN", "hf_secret_value")):
        monkeypatch.setenv(name, value)


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server on this machine, which a sandbox must not reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_local_job_with_contained_steps(run: Run, apptainer, port: int):
    script = script_of(job_of(run, port), contained(HERE, apptainer.sif), run)

    assert run_here(script, 1, run) == 0

    check_what_steps_saw(run)
    assert "hf_secret_value" not in script.read_text()


def test_a_slurm_job_with_contained_steps(run: Run, apptainer, slurm, port: int):
    cluster = replace(contained(SLURM, apptainer.sif), setup=[f"export PATH={apptainer.bin}:$PATH"])
    job = job_of(run, port)
    [task] = submit(script_of(job, cluster, run), job, cluster, run)

    assert slurm.states(task) == {task: "COMPLETED"}, (run.logs / f"generation.{task}.log").read_text()

    check_what_steps_saw(run)
