"""The supervisor's side of the forking process: it is started, asked for sessions' processes, heard and ended."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mathmill.sandbox import bubblewrap
from mathmill.sandbox.forkserver import LARGEST_MESSAGE, Settings
from mathmill.sandbox.process import SessionProcess
from mathmill.sandbox.walls import OWN_FOLDER

END_WITHIN_S = 2.0
GOES_WITHIN_S = 0.3
BUFFER_BYTES = 1 << 20


class WallsError(Exception):
    """The forking process did not come up, with the reason in one line."""


class ForkserverClient:
    """One forking process, started here. `layers` and `ready` come true, or raise WallsError, as it gets so far."""

    def __init__(self, settings: Settings, on_gone: Callable[[], None] = lambda: None):
        self._settings, self._on_gone = settings, on_gone
        self._loop = asyncio.get_running_loop()
        self._processes: dict[int, SessionProcess] = {}
        self._numbers = itertools.count()
        self.layers: asyncio.Future[dict[str, str]] = self._loop.create_future()
        self.ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.alive = True
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._errors = tempfile.TemporaryFile() if settings.only_probe else None  # noqa: SIM115
        with theirs:
            self.process = _spawn(settings, theirs.fileno(), self._errors)
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._hear)

    def __len__(self) -> int:
        return len(self._processes)

    def start_process(self) -> SessionProcess:
        """Ask for a session's process. OSError when the forking process is gone or has no room to listen."""
        if not self.alive:
            raise OSError("the forking process is gone")
        number = next(self._numbers)
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as theirs:
            ours, channel_end = socket.socketpair()
            on_failure.callback(ours.close)
            theirs.callback(channel_end.close)
            ends = [channel_end.fileno()]
            outputs = []
            for _ in ("stdout", "stderr"):
                output, end = os.pipe()
                on_failure.callback(os.close, output)
                theirs.callback(os.close, end)
                outputs.append(output)
                ends.append(end)
            socket.send_fds(self._control, [json.dumps({"op": "start", "number": number}).encode()], ends)
            on_failure.pop_all()

        def signal_by_number(signal_number: int) -> None:
            self._say({"op": "signal", "number": number, "signal": signal_number})

        process = SessionProcess(ours, outputs[0], outputs[1], self._settings.limits.cpu_s, signal_by_number)
        self._processes[number] = process
        return process

    async def end(self) -> None:
        """End it and all that it forked. It does so by itself when nobody listens any more, else it is killed."""
        if self.alive:
            self._control.shutdown(socket.SHUT_RDWR)
            for _ in range(int(END_WITHIN_S / 0.01)):
                if self.process.poll() is not None:
                    break
                await asyncio.sleep(0.01)
            self._went()

    def _last_words(self) -> str:
        """The last line that it printed, where it was started only to try."""
        if self._errors is None:
            return ""
        with self._errors as errors:
            errors.seek(0)
            return errors.read().decode(errors="replace").strip().rpartition("\n")[2]

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._control.send(json.dumps(message).encode())
        except OSError:  # it is going; its end will be heard
            pass

    def _hear(self) -> None:
        for _ in range(64):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, LARGEST_MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._went()
                return
            self._take(json.loads(data), descriptors)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "started" in message:
            process = self._processes.get(message["started"])
            if process is not None:
                process.started(descriptors[0] if descriptors else -1)
            else:
                for descriptor in descriptors:
                    os.close(descriptor)
        elif "ended" in message:
            process = self._processes.pop(message["ended"], None)
            if process is not None:
                process.died(message["status"], message["cpu_s"])
        elif "failed" in message:
            process = self._processes.pop(message["failed"], None)
            if process is not None:
                process.died(0, 0.0)
        elif "layers" in message:
            self.layers.set_result(message["layers"])
        elif "ready" in message:
            self.ready.set_result(message)

    def _went(self) -> None:
        """It is gone, and all sessions with it."""
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        try:  # it is about to end by itself, and then tells what its sessions have used
            self.process.wait(timeout=GOES_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for future in (self.layers, self.ready):
            if not future.done():
                future.set_exception(WallsError(self._last_words() or "the forking process died at its start"))
                future.exception()
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.died_with_its_walls()
        self._on_gone()


def _spawn(settings: Settings, control: int, errors: IO[bytes] | None) -> "subprocess.Popen[bytes]":
    """Start the program, in an environment that holds nothing of ours."""
    package = str(Path(__file__).parents[2])
    begin = "from mathmill.sandbox.forkserver import main; main()"
    program = [sys.executable, "-s", "-B", "-X", "utf8", "-c", begin, settings.as_json(), str(control)]
    if settings.isolation == "bubblewrap":
        program = [*bubblewrap.command(settings.folders, package), *program]
    environment = _session_environment() | {"PYTHONPATH": package}
    return subprocess.Popen(
        program,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=[control],
        cwd="/",
        start_new_session=True,  # Ctrl-C is the supervisor's alone
    )


def _session_environment() -> dict[str, str]:
    """All that a session sees of the environment. The hash seed is fixed: sets of strings keep their order in a replay."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": OWN_FOLDER,
        "TMPDIR": OWN_FOLDER,
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    return environment | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
