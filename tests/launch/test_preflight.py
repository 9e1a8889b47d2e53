"""What is known before a job is submitted."""

import sys
from dataclasses import replace
from pathlib import Path

from mathmill.launch.cluster import Runtimes
from mathmill.launch.preflight import largest_array, unseen
from mathmill.run import Run
from tests.launch.toys import SANDBOX, SERVER, SLURM, toy_job


def scontrol(folder: Path, monkeypatch, said: str) -> None:
    (folder / "scontrol").write_text(f"#!/bin/sh\necho '{said}'\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_slurms_own_limit_makes_as_few_arrays_as_needed(tmp_path, monkeypatch):
    scontrol(tmp_path, monkeypatch, "MaxArraySize            = 4001")
    assert largest_array(SLURM, 2) == 4001
    assert largest_array(replace(SLURM, max_array_size=100), 2) == 100
    assert largest_array(replace(SLURM, max_array_size=9000), 2) == 4001


def test_where_slurm_does_not_answer_the_file_or_slurms_default_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert largest_array(SLURM, 2) == 1001
    assert largest_array(SLURM, 1) == 1001
    assert largest_array(replace(SLURM, max_array_size=9000), 2) == 9000


def test_what_this_machine_does_not_see_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "there.sif").touch()
    site = replace(
        SLURM,
        runtime=Runtimes(server="apptainer", sandbox="apptainer"),
        images={"server": str(tmp_path / "there.sif"), "sandbox": "/nowhere/sandbox.sif"},
        mounts=["/nowhere/models:/models:ro", str(tmp_path)],
        python="/nowhere/python",
    )
    job = toy_job(steps=(replace(SERVER, kind=""), SANDBOX, toy_job().main))
    assert unseen([job], site, Run(Path("/shared/runs/x"))) == [
        "test.yaml: no program /nowhere/python (python) here",
        "test.yaml: the mount /nowhere/models is not here",
        "test.yaml: images.sandbox /nowhere/sandbox.sif is not here",
    ]
    assert unseen([toy_job()], replace(SLURM, python=sys.executable), Run(Path("/shared/runs/x"))) == []
    [warning] = unseen([toy_job()], SLURM, Run(Path("/tmp/me/runs/x")))
    assert "/tmp/me/runs/x lies where nodes seldom share files" in warning
