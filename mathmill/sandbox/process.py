"""A session's process as the supervisor sees it: fed, timed, read, stopped. Everything it says is hostile."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mathmill.sandbox.frames import FrameError, FrameReader, encode

READY_WITHIN_S = 30.0
GONE_WITHIN_S = 2.0
FLOOD_BYTES = 16 << 20
"""A block that prints more than this is stopped."""
PIPE_BYTES = 65536
STATUSES = ("ok", "error", "exit", "memory")
WALLS_DIED = "the process that sessions are forked from died; the block may have run, or not"


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


def _encodable(text: str) -> str:
    """Python can make lone surrogates, which no file and no terminal takes."""
    return text.encode(errors="replace").decode()


class SessionProcess:
    """A process that was asked for. Whoever asked calls `started` or `died`."""

    def __init__(
        self, channel: socket.socket, stdout: int, stderr: int, cpu_limit_s: int, signal_by_number: Callable[[int], None]
    ):  # fmt: skip
        """`signal_by_number` signals the process where there is no pidfd."""
        self.stdout, self.stderr = Output(), Output()
        self._loop = asyncio.get_running_loop()
        self._channel, self._outputs = channel, {stdout: self.stdout, stderr: self.stderr}
        self._cpu_limit_s, self._signal_by_number = cpu_limit_s, signal_by_number
        self._frames = FrameReader(limit=4096)
        self._ready: asyncio.Future[bool] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._cause: asyncio.Future[str] | None = None
        self._answer: dict[str, Any] = {}
        self._status, self._cpu_s, self._cpu_told = 0, 0.0, 0.0
        self._pidfd = -1
        self._killed = self._walls_died = False
        channel.setblocking(False)
        self._loop.add_reader(channel.fileno(), self._on_channel)
        for descriptor in self._outputs:
            os.set_blocking(descriptor, False)
            self._loop.add_reader(descriptor, self._on_output, descriptor)

    @property
    def alive(self) -> bool:
        """Whether it can run another block: it is there, and nobody has killed it."""
        return not (self._killed or self._gone.done())

    def started(self, pidfd: int) -> None:
        """It is there; `pidfd` is -1 where the kernel has none."""
        self._pidfd = pidfd
        if self._killed:
            self._signal(signal.SIGKILL)
        if self._channel.fileno() < 0:  # it was let go before
            self.let_go()

    def died(self, status: int, cpu_s: float) -> None:
        """The process was reaped with this wait status, having used this much CPU time in all."""
        self._status, self._cpu_s = status, cpu_s
        if not self._gone.done():
            self._gone.set_result(None)
        self._end("gone")

    def died_with_its_walls(self) -> None:
        """The process that forked it died, and it with that one."""
        self._walls_died = True
        self.died(signal.SIGKILL, self._cpu_told)

    async def ready(self) -> bool:
        """Whether the process came up in time."""
        if not self._ready.done():
            await asyncio.wait((self._ready, self._gone), timeout=READY_WITHIN_S, return_when="FIRST_COMPLETED")
        return self._ready.done() and self.alive

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
        sending = self._send(encode(command))
        self._signal(signal.SIGCONT)  # after the command, so that it wakes once
        cause = await self._cause
        wall_s = time.monotonic() - began
        deadline.cancel()
        if sending:
            sending.cancel()
        ending = self._answered(command["id"]) if cause == "answer" else None
        if ending is None:
            ending = await self._stopped(cause)
        else:
            self._signal(signal.SIGSTOP)  # between blocks nothing of the session runs: threads stand still
        self._drain()
        self._cause = None
        ending.wall_s = wall_s
        return ending

    def kill(self) -> None:
        """Kill the process now. It is gone once it has been reaped."""
        self._killed = True
        self._signal(signal.SIGKILL)

    async def close(self) -> None:
        """Kill the process, wait until it is gone, and let go of what it held."""
        self.kill()
        if not self._gone.done():
            await asyncio.wait((self._gone,), timeout=GONE_WITHIN_S)
        self.let_go()

    def let_go(self) -> None:
        """Close all that was open for it."""
        for descriptor in self._outputs:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._outputs.clear()
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _signal(self, number: int) -> None:
        if self._gone.done():
            return
        if self._pidfd < 0:
            self._signal_by_number(number)
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

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
            self._loop.remove_reader(self._channel.fileno())
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
        shown = None if result is None else _encodable(result)
        return Ending(told["status"], shown, _encodable(traceback), cpu_s, cut=told["cut"])

    async def _stopped(self, cause: str) -> Ending:
        self.kill()
        if not self._gone.done():
            await asyncio.wait((self._gone,), timeout=GONE_WITHIN_S)
        if self._walls_died and cause == "gone":
            return Ending("lost", traceback=WALLS_DIED)
        status = {"timeout": "timeout", "flood": "output", "broken": "crash", "answer": "crash"}.get(cause)
        return Ending(status or self._status_of_death(), cpu_s=max(0.0, self._cpu_s - self._cpu_told))

    def _status_of_death(self) -> str:
        if not os.WIFSIGNALED(self._status):
            return "exit"
        by_signal = os.WTERMSIG(self._status)
        if by_signal == signal.SIGXCPU or self._cpu_s >= self._cpu_limit_s:
            return "timeout"
        return "memory" if by_signal == signal.SIGKILL else "crash"
