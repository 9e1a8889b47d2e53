"""The process that starts sessions, keeps their time, and answers clients over a Unix socket."""

import asyncio
import itertools
import os
import resource
import secrets
import shutil
import signal
import socket
import stat
import sys
from collections import deque
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mathmill.errors import UserError
from mathmill.sandbox import syscalls
from mathmill.sandbox.child import Child, Limits, descendants, remove_folder, start_child
from mathmill.sandbox.frames import VERSION, FrameError, FrameReader, encode
from mathmill.sandbox.result import lost
from mathmill.sandbox.session import Session

LONGEST_SOCKET_PATH = 107
MAX_OUTPUT = 1_000_000
MAX_TIMEOUT_S = 3600.0
START_AGAIN_S = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """Options of the sandbox step."""

    socket: str = ""
    """Path of the Unix socket; by default `$MATHMILL_NODE_DIR/sandbox/socket`."""
    workers: int = 0
    """Blocks that run at the same time; 0: one a processor."""
    memory_mb: int = 2048
    """Address space of a session."""
    max_output: int = 10_000
    """Characters kept of stdout, stderr and result, where a client does not say."""
    spares: int = 2
    """Started processes that wait for a session."""
    grace_s: float = 2.0
    """How long the sessions of a client that hung up wait for it to come back."""
    processes: bool = False
    """Whether code may start processes."""
    until_stdin_closes: bool = False
    """End when standard input ends, as it does when the process that started this one dies, and remove the socket's folder."""


def options_from(section: dict[str, Any]) -> SandboxOptions:
    """Options from a job's JSON; a UserError names an unknown key or a value of a wrong type."""
    known = {option.name for option in fields(SandboxOptions)}
    unknown = sorted(section.keys() - known)
    if unknown:
        raise UserError(f"sandbox: unknown option '{unknown[0]}'. Known: {', '.join(sorted(known))}")
    for option in fields(SandboxOptions):
        value, kind = section.get(option.name, option.default), type(option.default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"sandbox: option '{option.name}' is {value!r}; it must be of type {kind.__name__}")
    return SandboxOptions(**section)


def socket_path(options: SandboxOptions) -> Path:
    """Where to listen; a UserError where nothing says so or the path is too long for a socket."""
    node_folder = os.environ.get("MATHMILL_NODE_DIR")
    if not options.socket and not node_folder:
        raise UserError(
            "sandbox: no socket path; set the option 'socket' or the environment variable MATHMILL_NODE_DIR"
        )
    path = Path(options.socket) if options.socket else Path(node_folder or "") / "sandbox" / "socket"
    path = path.absolute()
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        raise UserError(f"sandbox: the socket path {path} has {length} bytes, at most 107 work; use a shorter folder")
    return path


@dataclass
class Client:
    """One client's sessions. It may come back on a new connection; they end when it stays away."""

    sessions: dict[str, Session] = field(default_factory=dict)
    connections: int = 0
    farewell: asyncio.TimerHandle | None = None


class Supervisor:
    """All children, all sessions, all clients of one socket."""

    def __init__(self, options: SandboxOptions, filtered: bool):
        self._options = options
        self.limits = Limits(memory_mb=options.memory_mb, processes=options.processes, filtered=filtered)
        self.path = socket_path(options)
        self._work = self.path.parent / f"work-{secrets.token_hex(4)}"
        self._slots = asyncio.Semaphore(options.workers or len(os.sched_getaffinity(0)))
        self._children: dict[int, Child] = {}
        self._removing: set[int] = set()
        self._spares: deque[Child] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._clients: dict[str, Client] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._conversations: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._stopping = False

    async def serve(self, ready: str = "ready") -> None:
        """Listen, say so on stdout, and answer until TERM or INT comes."""
        self._prepare()
        listening = _listen(self.path)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        if self._options.until_stdin_closes:
            loop.add_reader(0, self._stop_at_end_of_input)
        server = await asyncio.start_unix_server(self._converse, sock=listening)
        self._fill()
        print(ready, flush=True)
        await self._stop.wait()
        server.close()
        await self._end()

    def _prepare(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self.path.parent.stat().st_mode) & 0o077:
            raise UserError(
                f"sandbox: the folder {self.path.parent} is open to others; run: chmod 700 {self.path.parent}"
            )
        self._work.mkdir(mode=0o700)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 65536, hard))
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)

    def _stop_at_end_of_input(self) -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            self._stop.set()

    async def _end(self) -> None:
        """Kill all, remove all."""
        self._stopping = True
        self.path.unlink(missing_ok=True)
        for child in self._children.values():
            child.kill()
        if self._filling:
            self._filling.cancel()
        for task in self._tasks:
            task.cancel()
        conversations = [task for task in self._conversations.values() if task is not None]
        for writer in self._conversations:
            writer.transport.abort()
        if conversations:
            await asyncio.wait(conversations, timeout=0.5)
        children = list(self._children.values())
        if children:
            await asyncio.wait([asyncio.ensure_future(child.close()) for child in children], timeout=1)
        self._kill_strays()
        shutil.rmtree(self._work, ignore_errors=True)
        if self._work.exists():
            remove_folder(self._work)
        if self._options.until_stdin_closes:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    # Children

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._removing.discard(pid)
            child = self._children.pop(pid, None)
            if child is not None:
                child.died(status, usage.ru_utime + usage.ru_stime)
        if self.limits.processes:
            self._kill_strays()

    def _kill_strays(self) -> None:
        """Kill what sessions left behind: orphans come to this process, since it is their subreaper."""
        ours = self._children.keys() | self._removing
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in map(int, children.read_text().split()):
                if pid not in ours:
                    for stray in [pid, *descendants(pid)]:
                        try:
                            os.kill(stray, signal.SIGKILL)
                        except ProcessLookupError:
                            pass

    def _start(self) -> Child:
        child = start_child(self._work / f"{next(self._numbers)}", self.limits)
        self._children[child.pid] = child
        return child

    async def _take(self) -> Child:
        """A child that is ready, new or waiting. OSError when none comes up."""
        while self._spares:
            child = self._spares.popleft()
            if child.alive:
                self._fill()
                return child
            await self._give_back(child)
        for pause in (*START_AGAIN_S, None):
            try:
                child = self._start()
            except OSError:
                if pause is None or self._stopping:
                    raise
                await asyncio.sleep(pause)
                continue
            if await child.ready():
                self._fill()
                return child
            await self._give_back(child)
        raise OSError("no process became ready")

    async def _give_back(self, child: Child) -> None:
        await child.close()
        try:
            child.folder.rmdir()
        except OSError:
            self._remove_apart(child.folder)

    def _remove_apart(self, folder: Path) -> None:
        """Remove a folder that has contents in a process of its own: it may hold a great deal."""
        pid = os.fork()
        if pid == 0:
            try:
                remove_folder(folder)
            finally:
                os._exit(0)
        self._removing.add(pid)

    def _fill(self) -> None:
        """See that enough spares are there or on their way."""
        if not self._stopping and (self._filling is None or self._filling.done()):
            self._filling = asyncio.ensure_future(self._start_spares())

    async def _start_spares(self) -> None:
        while len(self._spares) < self._options.spares and not self._stopping:
            try:
                child = self._start()
            except OSError:
                return
            if not await child.ready():
                await self._give_back(child)
                return
            self._spares.append(child)

    # Clients

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends or sends something that is no frame."""
        frames, name = FrameReader(), ""
        self._conversations[writer] = asyncio.current_task()
        try:
            while data := await reader.read(65536):
                for message in frames.feed(data):
                    if not name:
                        name = self._welcome(message, writer)
                    else:
                        task = asyncio.ensure_future(self._answer(self._clients[name], message, writer))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        except (FrameError, ConnectionError) as problem:
            print(f"sandbox: a connection ended: {problem}", file=sys.stderr)
        finally:
            writer.close()
            self._conversations.pop(writer)
            if name:
                self._part(name)

    def _welcome(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> str:
        name = message.get("client")
        if message.get("op") != "hello" or not isinstance(name, str) or not 8 <= len(name) <= 64:
            raise FrameError("no greeting")
        client = self._clients.setdefault(name, Client())
        client.connections += 1
        if client.farewell:
            client.farewell.cancel()
        layers = {"process": True, "syscall filter": self.limits.filtered, "files": False, "pid namespace": False}
        writer.write(encode({"id": message.get("id"), "version": VERSION, "layers": layers, "pid": os.getpid()}))
        return name

    def _part(self, name: str) -> None:
        client = self._clients[name]
        client.connections -= 1
        if client.connections == 0 and not self._stopping:
            loop = asyncio.get_running_loop()
            client.farewell = loop.call_later(self._options.grace_s, self._forget, name)

    def _forget(self, name: str) -> None:
        for session in self._clients.pop(name).sessions.values():
            self._later(session.close())

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, client: Client, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = message.get("id")
        try:
            answer = await self._do(client, message)
        except (KeyError, TypeError, ValueError) as problem:
            answer = {"error": f"bad request: {type(problem).__name__}: {problem}"[:300]}
        if not writer.is_closing():
            writer.write(encode(answer | {"id": number if isinstance(number, int) else None}))

    async def _do(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        operation = message["op"]
        if operation == "run":
            return await self._run(client, message)
        if operation == "close":
            session = client.sessions.pop(message["session"], None)
            if session is not None:
                await session.close()
            return {"closed": session is not None}
        if operation == "stats":
            sessions = sum(len(client.sessions) for client in self._clients.values())
            return {"children": len(self._children), "spares": len(self._spares), "sessions": sessions}
        raise ValueError(f"no operation {operation!r}")

    async def _run(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """Run a block. `index` counts the session's blocks from 0: a later one for a session that is not here is lost."""
        name, code, number, index = (message[key] for key in ("session", "code", "id", "index"))
        timeout = min(float(message["timeout"]), MAX_TIMEOUT_S)
        max_output = message.get("max_output")
        max_output = self._options.max_output if max_output is None else min(int(max_output), MAX_OUTPUT)
        checked = isinstance(name, str) and isinstance(code, str) and isinstance(number, int) and isinstance(index, int)
        if not checked or len(name) > 64 or not timeout > 0 or max_output < 0:
            raise ValueError("a field has a wrong value")
        session = client.sessions.get(name)
        if session is None:
            if index > 0:
                return vars(lost("the sandbox no longer knows this session"))
            session = client.sessions[name] = Session(name, self._take, self._give_back, self._slots)
        return await session.run(number, code, timeout, max_output)


def _listen(path: Path) -> socket.socket:
    """A socket at the path; a dead predecessor's is taken away, a living one's is not."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
                raise UserError(f"sandbox: another sandbox serves on {path}; stop it, or use another socket")
            except ConnectionError:
                path.unlink(missing_ok=True)
    try:
        listening.bind(str(path))
    except OSError as problem:
        raise UserError(f"sandbox: cannot listen on {path}: {problem.strerror}; use a folder on a local disk") from None
    path.chmod(0o600)
    listening.listen(1024)
    return listening


async def serve(options: SandboxOptions) -> None:
    """Serve until told to stop."""
    filtered = syscalls.filter_holds()
    if not filtered:
        print(
            "sandbox: no system call filter here: sessions can reach the network and start processes", file=sys.stderr
        )
    await Supervisor(options, filtered).serve()
