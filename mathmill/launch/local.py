"""A job on this machine: bash on its script, one process a task."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mathmill.launch.submissions import LocalTask, append_submission, local_submission
from mathmill.parent import die_with_parent
from mathmill.run import Run


def run_here(script: Path, tasks: int, run: Run) -> int:
    """Run every task of a script side by side and give the highest exit code; 130 after Ctrl-C.

    One task has the terminal; of several each writes to RUN/logs/NAME.local-TASK.log. Ctrl-C reaches the scripts through
    the terminal, which end their programs in order; TERM and HUP to this process are passed on, and its death is a TERM
    to them.
    """
    name = script.stem
    children: list[subprocess.Popen[bytes]] = []
    with _signals_go_to(children):
        for task in range(tasks):
            children.append(_start(script, task, tasks, run))
        append_submission(
            run,
            local_submission(
                name, script, [LocalTask(task=task, pid=child.pid) for task, child in enumerate(children)]
            ),
        )
        codes = []
        for task, child in enumerate(children):
            codes.append(_code(child.wait()))
            shutil.rmtree(f"/tmp/mathmill-local-{child.pid}-{task}", ignore_errors=True)  # of a script that was killed
            if tasks > 1:
                log = run.logs / f"{name}.local-{task}.log"
                print(f"task {task} of {tasks} ended with code {codes[-1]}; its log: {log}", file=sys.stderr)
    return max(codes)


def _start(script: Path, task: int, tasks: int, run: Run) -> "subprocess.Popen[bytes]":
    output = None if tasks == 1 else (run.logs / f"{script.stem}.local-{task}.log").open("ab")
    try:
        return subprocess.Popen(
            ["bash", str(script)],
            env={**os.environ, "MATHMILL_TASK": str(task)},
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
