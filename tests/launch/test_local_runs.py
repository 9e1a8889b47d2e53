"""Jobs on this machine, for real: bash on the rendered script with toy steps."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mathmill.launch.local import run_here
from mathmill.launch.status import cancel_jobs, job_states, live_jobs
from mathmill.launch.submissions import submissions
from mathmill.run import Run
from mathmill.stages.status import job_lines
from tests.launch.toys import (
    HERE,
    MAIN,
    SANDBOX,
    SERVER,
    environment,
    gone,
    new_run,
    notes,
    pid_in,
    script_of,
    toy_job,
    wait_for,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path / "a run's folder")


@contextlib.contextmanager
def started(run: Run, script: Path) -> Iterator["subprocess.Popen[str]"]:
    """The script under bash, in a process group of its own."""
    process = subprocess.Popen(
        ["bash", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # bash cannot trap what nohup ignores
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def main_notes(run: Run) -> list[str]:
    return next(iter(notes(run).values()), [])


def server_log(run: Run) -> str:
    return "".join(path.read_text() for path in run.logs.glob("*.server.log"))


def main_runs(run: Run) -> bool:
    return any(line.startswith("terminal") for line in main_notes(run))


def leftovers(run: Run) -> list[Path]:
    ids = [task for line in submissions(run) for task in line.task_ids] or [
        json.loads(line.removeprefix("started "))["MATHMILL_JOB"]
        for lines in notes(run).values()
        for line in lines
        if line.startswith("started")
    ]
    return [path for job in ids if (path := Path(f"/tmp/mathmill-{job}")).exists()] + list(run.servers.iterdir())


def test_steps_run_side_by_side_and_main_decides_the_exit_code(run: Run, capfd: pytest.CaptureFixture[str]):
    script = script_of(toy_job(main={"code": 5}, server={}), HERE, run)

    assert run_here(script, 1, run) == 5

    assert capfd.readouterr().out == "main runs\nmain ends\n"
    assert "ended in order" in server_log(run)
    assert leftovers(run) == []
    [line] = submissions(run)
    assert (line.executor, line.tasks, len(line.local)) == ("local", 1, 1)
    assert [(task.state, task.exit_code) for task in job_states(run)[0].tasks] == [("FAILED", "5")]
    shown = job_lines(job_states(run), run)
    assert shown[0].endswith(": 1 failed (exit code 5)") and "it wrote to its terminal" in shown[1]
    assert shown[2].endswith(".server.log") and shown[-1] == "      | ended in order"


def test_a_main_without_other_steps_is_enough(run: Run):
    assert run_here(script_of(toy_job(), HERE, run), 1, run) == 0

    assert job_lines(job_states(run), run)[0].endswith(": 1 completed")


def test_every_step_knows_its_task_and_runs_the_code_of_the_run(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MATHMILL_TASK", "7")
    monkeypatch.delenv("MATHMILL_DEV_DATA", raising=False)
    checkout = run.folder.parent / "checkout"
    checkout.mkdir()
    (checkout / "toy_main.py").write_text("raise SystemExit('the checkout was imported')")
    monkeypatch.chdir(checkout)

    assert run_here(script_of(toy_job(), HERE, run), 1, run) == 0

    told = json.loads(main_notes(run)[0].removeprefix("started "))
    assert told.pop("MATHMILL_JOB") == submissions(run)[0].task_ids[0]
    assert told.pop("MATHMILL_NODE_DIR").startswith("/tmp/mathmill-local-")
    assert told == {
        "MATHMILL_RUN": str(run.folder),
        "MATHMILL_TASK": "0",
        "MATHMILL_TASKS": "1",
        "MATHMILL_RESTART": "0",
        "MATHMILL_DIE_WITH_PARENT": "1",
    }


@pytest.mark.slow
def test_several_tasks_run_at_once_and_the_first_has_the_terminal(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mathmill.launch.local.LINE_S", 0.2)
    script = script_of(toy_job(main={"first_seconds": 0.5, "code": 3}, tasks=2), HERE, run)

    assert run_here(script, 2, run) == 3

    assert sorted(path.name for path in run.logs.glob("generation.local-?.log")) == ["generation.local-1.log"]
    log = run.logs / "generation.local-1.log"
    printed = capfd.readouterr()
    assert f"task 1 of 2 failed (3); log: {log}" in printed.err and printed.out == "main runs\nmain ends\n"
    assert f"mathmill: 2 of 2 tasks run (0, 1); log: {log}\n" in printed.err
    shown = job_lines(job_states(run), run)
    assert shown[0].endswith(": 2 failed (exit code 3)") and shown[-1] == "      | main ends"
    assert sorted(json.loads(lines[0].removeprefix("started "))["MATHMILL_TASK"] for lines in notes(run).values()) == [
        "0",
        "1",
    ]


def test_a_server_that_dies_at_start_ends_the_job_at_once_and_shows_its_last_lines(
    run: Run, capfd: pytest.CaptureFixture[str]
):
    began = time.monotonic()

    assert run_here(script_of(toy_job(server={"die_at_start": True}), HERE, run), 1, run) == 2

    error = capfd.readouterr().err
    assert time.monotonic() - began < 5
    assert "server died with exit code 3 before generation could start" in error
    assert "out of memory on purpose" in error and "loading part 29" in error and "loading part 3\n" not in error
    assert str(next(run.logs.glob("*.server.log"))) in error
    assert notes(run) == {} and leftovers(run) == []


@pytest.mark.slow
def test_a_server_that_is_not_ready_in_time_ends_the_job(run: Run, capfd: pytest.CaptureFixture[str]):
    job = toy_job(server={"never_ready": True}, steps=(replace(SERVER, ready_minutes=0.01), MAIN))

    assert run_here(script_of(job, HERE, run), 1, run) == 1

    assert "server was not ready after 1 s" in capfd.readouterr().err
    assert "ended in order" in server_log(run) and notes(run) == {}


@pytest.mark.slow
def test_a_server_that_dies_while_main_runs_ends_main_in_order(run: Run, capfd: pytest.CaptureFixture[str]):
    assert run_here(script_of(toy_job(main={"seconds": 60}, server={"live_s": 0.5}), HERE, run), 1, run) == 1

    error = capfd.readouterr().err
    assert "server died with exit code 9 while generation ran" in error and "the GPU fell off on purpose" in error
    assert main_notes(run)[-3:] == ["SIGTERM", "flushed", "ended 143"]


@pytest.mark.slow
def test_an_announcement_of_an_earlier_start_is_not_believed(run: Run, capfd: pytest.CaptureFixture[str]):
    job = toy_job(
        server={"never_ready": True},
        steps=(replace(SERVER, ready_file="$MATHMILL_RUN/servers/stale.json", ready_minutes=0.01), MAIN),
    )
    (run.servers / "stale.json").write_text("{}")

    assert run_here(script_of(job, HERE, run), 1, run) == 1
    assert "not ready" in capfd.readouterr().err


@pytest.mark.slow
def test_usr2_drains_main_and_its_code_says_that_work_is_left(run: Run):
    with started(run, script_of(toy_job(main={"seconds": 60}, server={}), HERE, run)) as process:
        wait_for(lambda: main_runs(run))
        process.send_signal(signal.SIGUSR2)
        output, _ = process.communicate(timeout=10)

    assert process.returncode == 75
    assert main_notes(run)[-3:] == ["SIGUSR2", "flushed", "ended 75"]
    assert "finishes what is in flight" in output and "the same command goes on from here" in output
    assert leftovers(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_hup_let_main_flush(run: Run, number: signal.Signals):
    with started(run, script_of(toy_job(main={"seconds": 60}, server={}), HERE, run)) as process:
        wait_for(lambda: main_runs(run))
        process.send_signal(number)
        process.communicate(timeout=10)

    assert process.returncode == 143
    assert main_notes(run)[-3:] == ["SIGTERM", "flushed", "ended 143"]
    assert "ended in order" in server_log(run) and leftovers(run) == []


@pytest.mark.slow
def test_term_while_a_server_loads_ends_the_job_without_main(run: Run):
    with started(run, script_of(toy_job(server={"never_ready": True}), HERE, run)) as process:
        wait_for(lambda: "pid" in server_log(run))
        process.terminate()
        process.communicate(timeout=10)

    assert process.returncode == 143 and notes(run) == {}


LAUNCHER = """
import sys
from pathlib import Path
from mathmill.launch.local import run_here
from mathmill.run import Run
sys.exit(run_here(Path(sys.argv[1]), int(sys.argv[3]), Run(Path(sys.argv[2]))))
"""


@contextlib.contextmanager
def on_a_terminal(run: Run, script: Path, repo: Path) -> Iterator[tuple[int, int]]:
    """A launcher with the script, in the foreground of a terminal of its own: (process, the terminal's other end)."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(repo)
        os.execv(sys.executable, [sys.executable, "-c", LAUNCHER, str(script), str(run.folder), "1"])
    try:
        yield child, terminal
    finally:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
        os.close(terminal)


def code_of(child: int, terminal: int, seconds: float = 15.0) -> int:
    """The child's exit code; what it writes is read on, so that it never waits for a reader."""
    last = time.monotonic() + seconds
    os.set_blocking(terminal, False)
    while True:
        with contextlib.suppress(OSError):
            os.read(terminal, 65536)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        assert time.monotonic() < last
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_lets_main_flush_and_leaves_no_process(run: Run, repo: Path):
    script = script_of(toy_job(main={"seconds": 60}, server={}), HERE, run)
    with on_a_terminal(run, script, repo) as (child, terminal):
        wait_for(lambda: main_runs(run))
        os.write(terminal, b"\x03")

        assert code_of(child, terminal) == 130

    assert main_notes(run)[-3:] == ["SIGTERM", "flushed", "ended 143"]
    assert "ended in order" in server_log(run)
    assert job_lines(job_states(run), run)[0].endswith(": 1 interrupted")
    assert gone(pid_in(main_notes(run))) and gone(pid_in(server_log(run).splitlines())) and leftovers(run) == []


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_the_flush(run: Run, repo: Path):
    script = script_of(toy_job(main={"seconds": 60, "flush_s": 60}), HERE, run)
    with on_a_terminal(run, script, repo) as (child, terminal):
        wait_for(lambda: main_runs(run))
        os.write(terminal, b"\x03")
        wait_for(lambda: "SIGTERM" in main_notes(run))
        os.write(terminal, b"\x03")

        assert code_of(child, terminal) == 130

    assert "flushed" not in main_notes(run) and gone(pid_in(main_notes(run)))


@pytest.mark.slow
def test_main_has_the_terminal_to_draw_on_and_to_read_from(run: Run, repo: Path):
    with on_a_terminal(run, script_of(toy_job(main={"echo": True}, server={}), HERE, run), repo) as (child, terminal):
        wait_for(lambda: main_runs(run))
        os.write(terminal, b"typed\n")
        seen = b""
        while b"main ends" not in seen:
            seen += os.read(terminal, 4096)

        assert code_of(child, terminal) == 0

    assert "terminal True True" in main_notes(run) and b"read typed" in seen


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "script"])
def test_nothing_outlives_a_kill_of_the_launcher_or_the_script(run: Run, repo: Path, victim: str):
    script = script_of(toy_job(main={"seconds": 60}, server={}), HERE, run)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, script, run.folder, "1"], cwd=repo)
    try:
        wait_for(lambda: main_runs(run))
        main, server = pid_in(main_notes(run)), pid_in(server_log(run).splitlines())
        os.kill(launcher.pid if victim == "launcher" else submissions(run)[0].local[0].pid, signal.SIGKILL)

        wait_for(lambda: gone(main) and gone(server))
        if victim == "script":
            launcher.wait(timeout=10)  # it clears away what the script could not
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(lambda: leftovers(run) == [] or victim == "script")
    assert [path for path in leftovers(run) if path.parent == Path("/tmp")] == []
    if victim == "launcher":
        assert wait_for(lambda: main_notes(run)[-1] == "ended 143")


@pytest.mark.slow
def test_a_local_run_is_seen_and_cancelled_from_another_terminal(run: Run, repo: Path):
    script = script_of(toy_job(main={"seconds": 60}, server={}), HERE, run)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, script, run.folder, "1"], cwd=repo)
    try:
        wait_for(lambda: main_runs(run))
        live = live_jobs(run)
        assert [task.state for job in live for task in job.tasks] == ["RUNNING"]
        cancel_jobs(job.submission for job in live)

        assert launcher.wait(timeout=10) == 143
    finally:
        launcher.kill()
        launcher.wait()
    assert main_notes(run)[-1] == "ended 143" and live_jobs(run) == []


def test_secrets_reach_server_and_client_and_never_the_sandbox_or_the_script(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("OTHER_KEY", "sk_other_value")
    steps = (
        SERVER,
        SANDBOX,
        replace(
            MAIN,
            name="judge",
            secrets=False,
            main=False,
            module="toy_server",
            ready_file="$MATHMILL_RUN/servers/judge.json",
        ),
        MAIN,
    )
    job = toy_job(
        steps=steps,
        options={"server": {"ready": "$MATHMILL_RUN/servers/$MATHMILL_JOB.json"}, "sandbox": {}, "generation": {}},
    )
    script = script_of(job, replace(HERE, env=["HF_TOKEN"]), run)
    script.write_text(script.read_text().replace("servers/judge.json", "servers/$MATHMILL_JOB.json"))

    assert run_here(script, 1, run) == 0

    logs = {path.suffixes[-2]: path.read_text().splitlines() for path in run.logs.glob("*.log")}
    assert environment(logs[".server"])["HF_TOKEN"] == "hf_secret_value"
    assert environment(main_notes(run))["HF_TOKEN"] == "hf_secret_value"
    assert "HF_TOKEN" not in environment(logs[".judge"])
    sandbox = environment(logs[".sandbox"])
    assert not {"HF_TOKEN", "OTHER_KEY"} & sandbox.keys() and sandbox["HOME"] == "/nonexistent"
    assert "hf_secret_value" not in script.read_text()
    assert set(sandbox) <= {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "TZ",
        "LD_LIBRARY_PATH",
        "OPENBLAS_CORETYPE",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "PYTHONSAFEPATH",
        "MATHMILL_RUN",
        "MATHMILL_JOB",
        "MATHMILL_NODE_DIR",
        "MATHMILL_DIE_WITH_PARENT",
        "LC_CTYPE",
    }


def test_a_setup_line_that_fails_ends_the_job_and_is_named(run: Run, capfd: pytest.CaptureFixture[str]):
    cluster = replace(HERE, setup=["export TOY=$UNSET_BY_ALL", "module_that_is_not_there load apptainer"])

    assert run_here(script_of(toy_job(), cluster, run), 1, run) == 1

    assert "setup failed: module_that_is_not_there load apptainer" in capfd.readouterr().err
    assert notes(run) == {}


@pytest.mark.slow
def test_the_folder_of_a_task_is_its_owners_alone(run: Run):
    with started(run, script_of(toy_job(main={"seconds": 60}), HERE, run)) as process:
        wait_for(lambda: main_runs(run))
        told = json.loads(main_notes(run)[0].removeprefix("started "))
        folder = Path(told["MATHMILL_NODE_DIR"])

        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder / "sandbox" / "socket")) < 107
        process.terminate()
        process.communicate(timeout=10)
    assert not folder.exists()


def test_a_launch_removes_the_node_folder_of_a_task_that_was_killed_with_its_launcher(run: Run):
    job = toy_job(main={"seconds": 100})
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, script_of(job, HERE, run), run.folder], env={**os.environ, "PYTHONPATH": "."}
    )
    wait_for(lambda: notes(run) and len(submissions(run)) == 1)
    task = submissions(run)[0].local[0]
    for pid in (launcher.pid, task.pid):
        os.kill(pid, signal.SIGKILL)
    launcher.wait()
    folder = Path(f"/tmp/mathmill-{submissions(run)[0].task_ids[0]}")
    assert folder.is_dir()
    wait_for(lambda: gone(task.pid))

    assert run_here(script_of(replace(job, options={"generation": {}}), HERE, run), 1, run) == 0

    assert not folder.exists()


LAUNCH = """
import sys
from pathlib import Path
from mathmill.launch.local import run_here
from mathmill.run import Run
run_here(Path(sys.argv[1]), 1, Run(Path(sys.argv[2])))
"""
