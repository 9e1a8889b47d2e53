"""The test Apptainer is a real one: an isolated container with Python, a bound folder, and nothing else of the host."""

import os
import subprocess
from pathlib import Path

import pytest

IN_CONTAINER = ["apptainer", "exec", "--containall", "--no-home", "--cleanenv", "--pwd=/mnt"]


def execute(apptainer, *command: str, bind: Path) -> subprocess.CompletedProcess[str]:
    call = [*IN_CONTAINER, "--net", "--network=none", f"--bind={bind}:/mnt", str(apptainer.sif), *command]
    return subprocess.run(call, capture_output=True, text=True, env=os.environ | apptainer.env, check=False)


def test_python_in_the_container_has_numpy_and_sympy_and_writes_to_a_bound_folder(apptainer, tmp_path: Path):
    code = "import numpy, sympy; open('made', 'w').write(str(sympy.binomial(numpy.arange(7).sum(), 2)))"

    done = execute(apptainer, "python3", "-c", code, bind=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "made").read_text() == "210"
    assert (tmp_path / "made").stat().st_uid == os.geteuid()


def test_the_container_is_an_unprivileged_user_and_its_exit_code_comes_back(apptainer, tmp_path: Path):
    done = execute(apptainer, "sh", "-c", "id -u; exit 37", bind=tmp_path)

    assert done.returncode == 37
    assert done.stdout.split()[0] != "0"


@pytest.mark.slurm
def test_a_job_step_runs_in_the_container_on_its_node(slurm, apptainer, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", apptainer.env["PATH"])
    container = [*IN_CONTAINER, f"--bind={tmp_path}:/mnt", apptainer.sif]

    slurm.call("srun", "--nodelist=node3", *container, "sh", "-c", "hostname >node")

    assert (tmp_path / "node").read_text().strip() == "node3"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_all_that_the_script_promises_holds(apptainer):
    script = Path(__file__).with_name("apptainer-up")

    done = subprocess.run([script, "check"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
