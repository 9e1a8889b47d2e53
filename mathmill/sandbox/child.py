"""One process that runs blocks: started bound and empty-handed, watched, read, killed. Everything it says is hostile."""

import asyncio
import marshal
import os
import resource
import shutil
import signal
import site
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathmill.sandbox import syscalls
from mathmill.sandbox.frames import FrameError, FrameReader

RUNNER = str(Path(__file__).with_name("runner.py"))
CHANNEL = 3
READY_WITHIN_S = 30.0
FLOOD_BYTES = 16 << 20
"""A block that prints more than this is stopped."""
PIPE_BYTES = 65536
STATUSES = ("ok", "error", "exit", "memory")


@dataclass(frozen=True)
class Limits:
    """What one session's process may use."""

    memory_mb: int = 2048
    file_mb: int = 16
    open_files: int = 64
    cpu_s: int = 3600
    processes: bool = False
    """Whether it may start processes; they are killed at each block's end."""
    filtered: bool = True
    """Whether the kernel's filter is there to hold it."""


@dataclass
class Ending:
    """How a block ended, before a session makes its result of it."""

    status: str
    result: str | None = None
    traceback: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    cut: bool = False


class Output:
    """What a block printed on one descriptor, kept up to a limit while it is being read."""

    def __init__(self) -> None:
        self.kept, self.total, self.limit = bytearray(), 0, 0

    def clear(self, limit: int) -> None:
        self.kept, self.total, self.limit = bytearray(), 0, limit

    def add(self, data: bytes) -> None:
        self.total += len(data)
        self.kept += data[: max(0, 4 * self.limit - len(self.kept))]

    def text(self) -> tuple[str, bool]:
        """At most `limit` characters, and whether there was more."""
        text = self.kept.decode(errors="replace")
        return text[: self.limit], len(text) > self.limit or self.total > len(self.kept)


class Child:
    """A running process. Made by `start_child`; its death is told by `died`, which whoever reaps must call."""

    def __init__(self, pid: int, channel: socket.socket, stdout: int, stderr: int, folder: Path, limits: Limits):
        self.pid, self.folder, self.limits = pid, folder, limits
        self.stdout, self.stderr = Output(), Output()
        self._loop = asyncio.get_running_loop()
        self._channel, self._outputs = channel, {stdout: self.stdout, stderr: self.stderr}
        self._frames = FrameReader(limit=4096)
        self._ready: asyncio.Future[bool] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._cause: asyncio.Future[str] | None = None
        self._answer: dict[str, Any] = {}
        self._status, self._cpu_s, self._cpu_told = 0, 0.0, 0.0
        self._killed = False
        channel.setblocking(False)
        self._loop.add_reader(channel, self._on_channel)
        for descriptor in self._outputs:
            os.set_blocking(descriptor, False)
            self._loop.add_reader(descriptor, self._on_output, descriptor)

    @property
    def alive(self) -> bool:
        """Whether it can run another block: it is there, and nobody has killed it."""
        return not (self._killed or self._gone.done())

    async def ready(self) -> bool:
        """Whether the process came up in time."""
        done, _ = await asyncio.wait((self._ready, self._gone), timeout=READY_WITHIN_S, return_when="FIRST_COMPLETED")
        return self._ready in done

    async def run(self, command: dict[str, Any], timeout: float) -> Ending:
        """Run one block and tell how it ended, `timeout` seconds from now at the latest. Whatever it printed is in `stdout`
        and `stderr`. On anything but an answer the process is dead afterwards."""
        limit = command["limit"]
        self._drain()
        self.stdout.clear(limit)
        self.stderr.clear(limit)
        self._frames.limit = 4096 + 2 * 12 * limit
        self._cause = self._loop.create_future()
        began = time.monotonic()
        deadline = self._loop.call_later(timeout, self._end, "timeout")
        body = marshal.dumps(command)
        self._signal(signal.SIGCONT)
        sending = self._send(len(body).to_bytes(4, "big") + body)
        cause = await self._cause
        wall_s = time.monotonic() - began
        deadline.cancel()
        if sending:
            sending.cancel()
        ending = self._answered(command["id"]) if cause == "answer" else None
        if ending is None:
            ending = await self._stopped(cause)
        self._drain()
        self._cause = None
        self._rest()
        ending.wall_s = wall_s
        return ending

    def kill(self) -> None:
        """Kill the process and its group now. It is gone once it has been reaped."""
        self._killed = True
        if not self._gone.done():
            for kill in (os.killpg, os.kill):
                try:
                    kill(self.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass

    def died(self, status: int, cpu_s: float) -> None:
        """The process was reaped with this wait status, having used this much CPU time in all."""
        self._status, self._cpu_s = status, cpu_s
        if not self._gone.done():
            self._gone.set_result(None)
        self._end("gone")

    async def close(self) -> None:
        """Kill the process, wait until it is gone, and let go of what it held; its folder is left to the caller."""
        self.kill()
        await asyncio.wait((self._gone,), timeout=2)
        for descriptor in self._outputs:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._loop.remove_reader(self._channel)
        self._channel.close()

    def _send(self, data: bytes) -> "asyncio.Task[None] | None":
        try:
            sent = self._channel.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end("broken")
            return None
        if sent == len(data):
            return None
        return asyncio.ensure_future(self._loop.sock_sendall(self._channel, data[sent:]))

    def _end(self, cause: str) -> None:
        if self._cause is not None and not self._cause.done():
            self._cause.set_result(cause)

    def _on_channel(self) -> None:
        try:
            data = self._channel.recv(PIPE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The process is ending, or closed its descriptor: its death, when that comes first, tells more.
            self._loop.remove_reader(self._channel)
            self._loop.call_later(0.1, self._break)
            return
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except FrameError:
            self._break()

    def _take(self, message: dict[str, Any]) -> None:
        if not self._ready.done() and message.get("ready") is True and isinstance(message.get("cpu_s"), float):
            self._cpu_told = message["cpu_s"]
            self._ready.set_result(True)
        elif self._cause is not None and not self._cause.done():
            self._answer = message
            self._end("answer")
        else:
            self._break()

    def _break(self) -> None:
        self._end("broken")
        self.kill()

    def _on_output(self, descriptor: int) -> bool:
        """Read once; whether there was something."""
        try:
            data = os.read(descriptor, PIPE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(descriptor)
            return False
        output = self._outputs[descriptor]
        output.add(data)
        if output.total > FLOOD_BYTES:
            self._end("flood")
        return True

    def _drain(self) -> None:
        for descriptor in self._outputs:
            for _ in range(64):
                if not self._on_output(descriptor):
                    break

    def _answered(self, expected_id: int) -> Ending | None:
        """The answer, if it is one: every field is checked."""
        told = self._answer
        result, traceback, cpu_s = told.get("result"), told.get("traceback"), told.get("cpu_s")
        if (
            type(told.get("id")) is not int
            or told["id"] != expected_id
            or told.get("status") not in STATUSES
            or not (result is None or isinstance(result, str))
            or not isinstance(traceback, str)
            or not isinstance(told.get("cut"), bool)
            or not isinstance(cpu_s, float)
            or not 0 <= cpu_s < 1e6
            or len(result or "") > self.stdout.limit
            or len(traceback) > self.stdout.limit
        ):
            return None
        self._cpu_told += cpu_s
        return Ending(told["status"], result, traceback, cpu_s, cut=told["cut"])

    async def _stopped(self, cause: str) -> Ending:
        self.kill()
        await asyncio.wait((self._gone,), timeout=2)
        by_signal = os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else None
        status = {"timeout": "timeout", "flood": "output", "broken": "crash", "answer": "crash"}.get(cause)
        if status is None:
            ends: dict[int | None, str] = {None: "exit", signal.SIGKILL: "memory", signal.SIGXCPU: "timeout"}
            status = ends.get(by_signal, "crash")
        return Ending(status, cpu_s=max(0.0, self._cpu_s - self._cpu_told))

    def _rest(self) -> None:
        """Between blocks nothing of the session runs: threads stand still, processes are killed."""
        if self.alive:
            self._signal(signal.SIGSTOP)
            if self.limits.processes:
                for pid in descendants(self.pid):
                    _kill(pid)

    def _signal(self, number: int) -> None:
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass


def descendants(pid: int) -> list[int]:
    """Children of a process, theirs, and so on."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(child) for child in children.read_text().split()]
        except OSError:
            continue
        for child in direct:
            found += [child, *descendants(child)]
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start_child(folder: Path, limits: Limits) -> Child:
    """Start a process in its own session and new private folder. OSError where the machine has no more to give."""
    folder.mkdir(mode=0o700)
    ours, theirs = socket.socketpair()
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        for descriptor in (out, err, out_end, err_end):
            os.close(descriptor)
        ours.close()
        theirs.close()
        folder.rmdir()
        raise
    if pid == 0:
        try:
            _become_runner(supervisor, folder, limits, [out_end, err_end, theirs.fileno()])
        finally:
            os._exit(127)
    os.close(out_end)
    os.close(err_end)
    theirs.close()
    return Child(pid, ours, out, err, folder, limits)


def _become_runner(supervisor: int, folder: Path, limits: Limits, ends: list[int]) -> None:
    """In the new process: bind it and exec. Only descriptors 0 to 3 go with it; Python opens all others close-on-exec."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    moved = [_above(descriptor, 10) for descriptor in (null, *ends)]
    for target, descriptor in enumerate(moved):
        os.dup2(descriptor, target, inheritable=True)
    os.chdir(folder)
    os.umask(0o077)
    memory, file_bytes = limits.memory_mb << 20, limits.file_mb << 20
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit + 5 if kind == resource.RLIMIT_CPU else limit))
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(127)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if limits.filtered:
        syscalls.install_filter(limits.processes)
    program = [sys.executable, "-S", "-s", "-B", "-X", "utf8", RUNNER, *site.getsitepackages()]
    os.execve(sys.executable, program, child_environment(folder))


def _above(descriptor: int, least: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, least)


def child_environment(folder: Path) -> dict[str, str]:
    """All that a session sees of the environment. The hash seed is fixed: sets of strings keep their order in a replay."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    return environment | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def remove_folder(folder: Path) -> None:
    """Remove a session's folder, whatever it was made to hold."""

    def open_up(function: Any, path: str, _: Any) -> None:
        for closed in (os.path.dirname(path), path):
            try:
                os.chmod(closed, 0o700, follow_symlinks=False) if not os.path.islink(closed) else None
            except (OSError, NotImplementedError):
                pass
        try:
            function(path)
        except OSError:
            pass

    try:
        folder.rmdir()
    except OSError:
        shutil.rmtree(folder, onerror=open_up)
