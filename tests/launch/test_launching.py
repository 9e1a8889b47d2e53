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
from mathmill.launch.show import show, wrapped
from mathmill.launch.snapshot import code_sha
from mathmill.launch.submissions import submissions
from mathmill.launch.submit import submit
from mathmill.run import Run, check_run_name

WORK = [("work", "400 problems x 4 samples: 100 done, 1,500 left")]


@pytest.fixture
def run(workdir: Path) -> Run:
    return Run(workdir / "runs" / "demo")


def job(gpus: int = 0, **changes: object) -> Job:
    """A job whose main only imports a module of the snapshot."""
    main = Step(name="generation", role="client", module="mathmill.errors", main=True, gpus=gpus)
    return replace(Job(name="generation", steps=(main,), options={"generation": {"seed": 1}}), **changes)


def never() -> None:
    raise AssertionError("nothing was to be prepared")


def test_a_dry_run_prints_the_script_alone_and_writes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    selene = load_cluster("selene")

    assert launch([job(gpus=8, tasks=128)], selene, run, LaunchOptions(dry_run=True), WORK, prepare=never) == 0

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
        "warning    HF_TOKEN (cluster_configs/selene.yaml, env) not set here, so not passed to the job",
    ]


@pytest.mark.slow
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
        "again      python pipeline/run_generation.py --run 'a b'",
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
        launch([job()], load_cluster("selene"), run, LaunchOptions(), [], prepare=never)
    assert not run.folder.exists()

    with pytest.raises(UserError, match="no Slurm on this machine"):
        submit(Path("x"), job(), load_cluster("selene"), run)


@pytest.mark.slow
def test_many_gpu_hours_are_asked_about_and_without_a_terminal_refused(run: Run, monkeypatch: pytest.MonkeyPatch):
    selene = load_cluster("selene")
    jobs = [job(gpus=8, tasks=128)]
    assert gpu_hours(jobs, selene) == 4096
    assert gpu_hours(jobs, replace(selene, time_limit=None)) is None
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    message = r"this takes up to 4,096 GPU hours, more than confirm_gpu_hours: 1,000 of cluster_configs/selene.yaml; say --yes"
    with pytest.raises(UserError, match=message):
        launch(jobs, selene, run, LaunchOptions(), [], prepare=never)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no Slurm"):  # what comes after the question
        launch(jobs, selene, run, LaunchOptions(yes=True), [])
    with pytest.raises(UserError, match="no Slurm"):
        launch([job(gpus=8)], selene, run, LaunchOptions(), [])
    assert not run.folder.exists()


@pytest.mark.slow
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
    assert cluster_for(LaunchOptions()).python == sys.executable
    for name, value, message in (
        ("time_limit", "soon", "--time_limit: 'soon' is no time"),
        ("time_limit", "0", "--time_limit must be more than 0"),
        ("partition", "a\nb", r"--partition 'a\\nb' is empty, or holds a line break"),
        ("partition", "", "--partition '' is empty"),
    ):
        with pytest.raises(UserError, match=message):
            cluster_for(replace(options, **{name: value}))
    with pytest.raises(UserError, match="pyxis is a plugin of Slurm"):
        cluster_for(LaunchOptions(runtime="pyxis"))


def test_a_short_time_limit_on_the_command_line_moves_the_warning(workdir: Path):
    assert load_cluster("selene").stop_before_s == 600
    assert cluster_for(LaunchOptions(cluster="selene", time_limit="4")).stop_before_s == 60
    assert cluster_for(LaunchOptions(cluster="selene", time_limit="1:00:00")).stop_before_s == 600


def test_what_the_stage_writes_is_written_before_anything_runs(run: Run):
    seen: list[bool] = []

    assert (
        launch([job()], load_cluster("local"), run, LaunchOptions(), [], prepare=lambda: seen.append(run.jobs.exists()))
        == 0
    )

    assert seen == [False]


def test_a_refused_submission_leaves_no_script(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in {
        "sbatch": "echo sbatch: error: invalid partition >&2; exit 1",
        "srun": "",
        "scontrol": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    selene = load_cluster("selene")

    with pytest.raises(UserError, match=r"sbatch refused .*invalid partition"):
        launch([job()], selene, run, LaunchOptions(), [])
    assert [path.name for path in run.folder.iterdir()] == ["code"]

    (tmp_path / "scontrol").write_text("#!/bin/bash\necho 'error: fetch_config: DNS SRV lookup failed' >&2; exit 1\n")
    with pytest.raises(
        UserError, match="this machine reaches no Slurm; run it on a login node of selene, or use --dry"
    ):
        launch([job()], selene, run, LaunchOptions(), [], prepare=never)


def test_a_launch_that_lost_the_race_for_a_name_does_not_run(run: Run):
    def another_launch() -> None:
        run.jobs.mkdir(parents=True)
        (run.jobs / "generation.sbatch").touch()

    with pytest.raises(UserError, match="another launch of demo was first"):
        launch([job()], load_cluster("local"), run, LaunchOptions(), [], prepare=another_launch)
    assert submissions(run) == []


def test_apptainer_without_an_image_file_is_refused_here(run: Run):
    sandbox = Step(name="sandbox", role="sandbox", module="mathmill.errors")
    cluster = cluster_for(LaunchOptions(runtime="apptainer"))

    message = r"local\.yaml: images\.sandbox 'mathmill-sandbox' is no file; apptainer wants a \.sif: containers/sandbox/README"
    with pytest.raises(UserError, match=message):
        launch([job(steps=(sandbox, job().main))], cluster, run, LaunchOptions(), [], prepare=never)


def test_long_values_are_wrapped_at_words():
    assert wrapped(["python", "run.py", "--run", "'a b'"], 16, " \\") == ["python run.py \\", "--run 'a b'"]
    assert wrapped(["one", "two"], 3) == ["one", "two"] and wrapped(["longer"], 3) == ["longer"]


def test_brackets_in_names_are_no_markup(capsys: pytest.CaptureFixture[str]):
    show([("run", "runs/[bold]a[/bold]"), ("again", ["python", "[red]"])])

    assert capsys.readouterr().err == "run        runs/[bold]a[/bold]\nagain      python [red]\n"


@pytest.mark.parametrize("name", ["a/b", "", "a b", "a\n", "[a]", ".a", "-a", "a" * 101])
def test_a_runs_name_is_a_plain_word(name: str):
    with pytest.raises(UserError, match=r"^--run"):
        check_run_name(name)
    check_run_name("MATH-test_1.5")


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
