"""Launches: what is printed, what is written, and what is refused before anything happens."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.launch.cluster import load_cluster
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import LaunchOptions, cluster_for, gpu_hours, launch
from mathmill.launch.render import render
from mathmill.launch.snapshot import code_sha
from mathmill.launch.submissions import submissions
from mathmill.launch.submit import submit
from mathmill.run import Run

WORK = [("work", "400 problems x 4 samples: 100 done, 1,500 left")]


@pytest.fixture
def run(workdir: Path) -> Run:
    return Run(workdir / "runs" / "demo")


def job(gpus: int = 0, **changes: object) -> Job:
    """A job whose main only imports a module of the snapshot."""
    main = Step(name="generation", role="client", module="mathmill.errors", main=True, gpus=gpus)
    return replace(Job(name="generation", steps=(main,), options={"generation": {"seed": 1}}), **changes)


def test_a_dry_run_prints_the_script_alone_and_writes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    selene = load_cluster("selene")

    assert launch([job(gpus=8, tasks=128)], selene, run, LaunchOptions(dry_run=True), WORK) == 0

    printed = capsys.readouterr()
    assert printed.out == render(job(gpus=8, tasks=128), selene, run, code_sha())
    assert "\n#SBATCH --array=0-127%32\n" in printed.out
    assert not run.folder.exists() and list(run.folder.parent.parent.iterdir()) == []
    assert printed.err.splitlines() == [
        "run        runs/demo",
        "cluster    selene (cluster_configs/selene.yaml; ask your site's support address, for partitions and accounts)",
        "work       400 problems x 4 samples: 100 done, 1,500 left",
        "job        generation: an array of 128 tasks, at most 32 at a time, each 1 node with 8 GPUs, up to 4:00:00: generation",
        "GPU hours  at most 4,096",
    ]


def test_a_local_launch_writes_what_it_ran_and_again_gets_a_name_of_its_own(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["pipeline/run_generation.py", "--run", "a b"])
    local = load_cluster("local")
    (run.folder).mkdir(parents=True)
    (run.folder / "cancelled").touch()

    assert launch([job()], local, run, LaunchOptions(), WORK) == 0
    assert launch([job()], local, run, LaunchOptions(), WORK) == 0

    assert (run.jobs / "generation.sbatch").read_text() == render(job(), local, run, code_sha())
    assert json.loads((run.jobs / "generation.json").read_text()) == {"generation": {"seed": 1}}
    assert [line.name for line in submissions(run)] == ["generation", "generation-2"]
    assert "jobs/generation-2.json" in (run.jobs / "generation-2.sbatch").read_text()
    assert (run.code / code_sha() / "mathmill" / "errors.py").exists() and not (run.folder / "cancelled").exists()
    block = capfd.readouterr().err
    for line in (
        "job        generation: 1 process here: generation",
        "script     runs/demo/jobs/generation.sbatch",
        "look       python pipeline/status.py demo",
        "stop       Ctrl-C, or python pipeline/cancel.py demo",
        "again      python pipeline/run_generation.py --run 'a b'   (goes on where it stopped)",
    ):
        assert line in block


def test_the_code_of_a_failing_local_job_is_the_launchs(run: Run):
    assert (
        launch(
            [job(), job(name="second", steps=(replace(job().main, module="mathmill.nothing"),))],
            load_cluster("local"),
            run,
            LaunchOptions(),
            [],
        )
        == 1
    )


def test_a_cluster_without_slurm_here_is_refused_before_anything_is_written(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(UserError, match=r"no Slurm on this machine \(sbatch is not in PATH\).*--dry_run"):
        launch([job()], load_cluster("selene"), run, LaunchOptions(), [])
    assert not run.folder.exists()

    with pytest.raises(UserError, match="no Slurm on this machine"):
        submit(Path("x"), job(), load_cluster("selene"), run)


def test_many_gpu_hours_are_asked_about_and_without_a_terminal_refused(run: Run, monkeypatch: pytest.MonkeyPatch):
    selene = load_cluster("selene")
    jobs = [job(gpus=8, tasks=128)]
    assert gpu_hours(jobs, selene) == 4096
    assert gpu_hours(jobs, replace(selene, time_limit=None)) is None
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    message = r"this takes up to 4,096 GPU hours, more than confirm_gpu_hours: 1,000 of cluster_configs/selene.yaml; say --yes"
    with pytest.raises(UserError, match=message):
        launch(jobs, selene, run, LaunchOptions(), [])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no Slurm"):  # what comes after the question
        launch(jobs, selene, run, LaunchOptions(yes=True), [])
    with pytest.raises(UserError, match="no Slurm"):
        launch([job(gpus=8)], selene, run, LaunchOptions(), [])
    assert not run.folder.exists()


def test_a_person_is_asked_and_may_say_no(run: Run, repo: Path):
    import pty

    code = f"""
import sys; sys.path.insert(0, {str(repo)!r})
from tests.launch.test_launching import *
from mathmill.options import ended_by
run = Run(Path("runs/x").resolve())
ended_by(lambda: launch([job(gpus=8, tasks=128)], load_cluster("selene"), run, LaunchOptions(), []))
"""
    parent, child = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=child, stderr=subprocess.PIPE, text=True)
    os.write(parent, b"n\n")
    _, error = process.communicate(timeout=20)
    os.close(parent)
    os.close(child)

    assert process.returncode == 2
    assert "This takes up to 4,096 GPU hours. Submit? [y/N] error: nothing was submitted" in error


def test_a_second_launch_of_a_run_at_work_here_is_refused(run: Run, repo: Path):
    from mathmill.launch.submissions import LocalTask, append_submission, local_submission

    append_submission(
        run, local_submission("generation", Path("generation.sbatch"), [LocalTask(task=0, pid=os.getpid())])
    )

    with pytest.raises(UserError, match=rf"run demo is at work: generation local-{os.getpid()}-0 \(1 running\)"):
        launch([job()], load_cluster("local"), run, LaunchOptions(), [])
    assert launch([job()], load_cluster("local"), run, LaunchOptions(add_jobs=True), []) == 0


def test_only_slurm_can_be_asked(run: Run):
    with pytest.raises(UserError, match="--test_only asks Slurm, and this is a local run"):
        launch([job()], load_cluster("local"), run, LaunchOptions(test_only=True), [])


def test_options_replace_what_the_cluster_says(workdir: Path):
    options = LaunchOptions(cluster="selene", time_limit="1:00:00", partition="debug", runtime="apptainer")
    cluster = cluster_for(options)

    assert (cluster.time_limit, cluster.partitions.gpu, cluster.partitions.cpu) == ("1:00:00", "debug", "debug")
    assert (cluster.runtime.server, cluster.runtime.sandbox, cluster.runtime.client) == (
        "apptainer",
        "apptainer",
        "none",
    )
    with pytest.raises(UserError, match=r"selene\.yaml: time_limit: 'soon' is no time"):
        cluster_for(replace(options, time_limit="soon"))
    with pytest.raises(UserError, match="pyxis is a plugin of Slurm"):
        cluster_for(LaunchOptions(runtime="pyxis"))


def test_a_name_that_is_not_set_here_is_told(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN", raising=False)

    launch([job()], replace(load_cluster("local"), env=["HF_TOKEN"]), run, LaunchOptions(), [])

    assert "HF_TOKEN (cluster_configs/local.yaml, env) not set here" in capsys.readouterr().err


def test_a_launch_imports_neither_submitit_nor_omegaconf_for_its_help():
    heavy = (
        "import sys; import mathmill.launch.launching, mathmill.stages.status, mathmill.stages.cancel; "
        "print([name for name in ('submitit', 'omegaconf', 'jinja2', 'rich.console', 'yaml', 'aiohttp') if name in sys.modules])"
    )

    printed = subprocess.run(
        [sys.executable, "-c", heavy], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert printed.stdout.strip() == "[]", printed.stderr
