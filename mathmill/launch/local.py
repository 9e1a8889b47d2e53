"""A job on this machine: bash on its script, one process a task."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mathmill.launch.status import STOPPED_CODES
from mathmill.launch.submissions import (
    LocalEnd,
    LocalTask,
    Submission,
    append_end,
    append_submission,
    lives,
    local_log,
    local_submission,
    submissions,
)
from mathmill.parent import die_with_parent
from mathmill.run import Run

LINE_S, POLL_S = 5.0, 0.05


def run_here(script: Path, tasks: int, run: Run) -> int:
    """Run every task of a script side by side and give the highest exit code; 130 after Ctrl-C.

    Task 0 has the terminal; each of the others writes to RUN/logs/NAME.local-TASK.log. How each ended goes to
    RUN/jobs/ended.jsonl. Ctrl-C reaches the scripts through the terminal, which end their programs in order; TERM and HUP
    to this process are passed on, and its death is a TERM to them.
    """
    remove_left_node_folders(run)
    children: list[subprocess.Popen[bytes]] = []
    with _signals_go_to(children):
        for task in range(tasks):
            children.append(_start(script, task, run))
        local = [LocalTask(task=task, pid=child.pid) for task, child in enumerate(children)]
        submission = local_submission(script.stem, script, local)
        append_submission(run, submission)
        codes = _ends_of(children, submission, run)
    if tasks > 1:
        for task, code in sorted(codes.items()):
            say(f"task {task} of {tasks} {_how(code)}{_where(run, submission.name, task)}")
    return max(codes.values())


def remove_left_node_folders(run: Run) -> None:
    """The folders of this run's tasks on this machine that ended with nobody left to tidy up: script and launcher killed."""
    for line in submissions(run):
        if line.host == socket.gethostname():
            for task_id, task in zip(line.task_ids, line.local, strict=True):
                folder = Path("/tmp", f"mathmill-{task_id}")
                if not lives(task, line.host) and not folder.is_symlink() and _is_ours(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _ends_of(children: "list[subprocess.Popen[bytes]]", submission: Submission, run: Run) -> dict[int, int]:
    """Wait for every task and note its exit code as soon as it has one."""
    codes: dict[int, int] = {}
    next_line = time.monotonic() + LINE_S
    while len(codes) < len(children):
        for task, child in enumerate(children):
            if task not in codes and child.poll() is not None:
                codes[task] = _code(child.returncode)
                append_end(run, LocalEnd(task_id=submission.task_ids[task], code=codes[task]))
                shutil.rmtree(f"/tmp/mathmill-{submission.task_ids[task]}", ignore_errors=True)  # its script was killed
        if len(children) > 1 and time.monotonic() >= next_line:
            next_line += LINE_S
            if 0 in codes or not sys.stderr.isatty():  # else task 0 draws there
                _say_what_runs(len(children), codes, run, submission.name)
        time.sleep(POLL_S)
    return codes


def _is_ours(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.getuid()
    except OSError:
        return False


def _say_what_runs(tasks: int, codes: dict[int, int], run: Run, name: str) -> None:
    running = [task for task in range(tasks) if task not in codes]
    if running:
        shown = ", ".join(map(str, running[:8])) + (", …" if len(running) > 8 else "")
        say(f"{len(running)} of {tasks} tasks run ({shown}){_where(run, name, running[-1])}")


def _where(run: Run, name: str, task: int) -> str:
    return f"; log: {local_log(run, name, task)}" if task else ""


def _how(code: int) -> str:
    return "completed" if code == 0 else f"was interrupted ({code})" if code in STOPPED_CODES else f"failed ({code})"


def say(text: str) -> None:
    """A line of the launcher among those of its tasks."""
    print(f"mathmill: {text}", file=sys.stderr, flush=True)


def _start(script: Path, task: int, run: Run) -> "subprocess.Popen[bytes]":
    output = local_log(run, script.stem, task).open("ab") if task else None
    try:
        return subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, "MATHMILL_TASK": str(task)},
            stdin=subprocess.DEVNULL if task else None,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
    finally:
        if output is not None:
            output.close()


def _code(status: int) -> int:
    return 128 - status if status < 0 else status


@contextmanager
def _signals_go_to(children: "list[subprocess.Popen[bytes]]") -> Iterator[None]:
    """Until the scripts have ended: Ctrl-C is theirs (the terminal sends it to them too), TERM and HUP are passed on."""

    def pass_on(number: int, _: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if number != signal.SIGHUP else signal.SIGHUP)

    # functions, not SIG_IGN: a shell that starts with a signal ignored cannot trap it
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
