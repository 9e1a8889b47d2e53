"""One child process in a group of its own, that ends when we are told to. Standard library only."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from types import FrameType

from mathmill.errors import UserError
from mathmill.parent import die_with_parent

GRACE_S = 10.0
"""How long the child may take to end after TERM."""


class Child:
    """A process, its group, and the signals TERM and INT, which from `with` on are the child's to obey.

    The group is not a session: a session would let the child outlive its Slurm job where jobs are tracked by session.
    """

    def __init__(self) -> None:
        self.told_to_stop = False
        self._process: subprocess.Popen[bytes] | None = None
        self._kill_at = float("inf")

    def __enter__(self) -> "Child":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def start(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Start the process; its output is ours."""
        try:
            self._process = subprocess.Popen(command, env=environment, preexec_fn=self._before_exec)
        except (FileNotFoundError, PermissionError) as problem:
            raise UserError(f"cannot run {command[0]}: {problem.strerror}; is it in the server's container?") from None
        if self.told_to_stop:
            self.stop()

    def poll(self, wait_s: float = 0.0) -> int | None:
        """The exit code once the process has ended (128 + n for signal n), waiting for it at most `wait_s`."""
        if self._process is None:
            return None
        if time.monotonic() > self._kill_at:
            self._signal_group(signal.SIGKILL)
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """TERM to the group, and KILL when `poll` finds it alive GRACE_S later."""
        self._kill_at = min(self._kill_at, time.monotonic() + GRACE_S)
        self._signal_group(signal.SIGTERM)

    def end(self) -> None:
        """Stop the process, wait for its end, and leave nothing of its group."""
        if self.poll() is None and self._process is not None:
            self.stop()
            while self.poll(0.1) is None:
                pass
        self._signal_group(signal.SIGKILL)

    def _before_exec(self) -> None:
        os.setpgid(0, 0)
        die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes of a step; it is for us alone

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.told_to_stop = True
        self.stop()

    def _signal_group(self, number: int) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                pass
