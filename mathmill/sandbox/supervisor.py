"""The process that owns sessions, keeps their time, and answers clients over a Unix socket or TCP."""

import asyncio
import hmac
import os
import resource
import secrets
import shutil
import signal
import socket
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mathmill.errors import UserError
from mathmill.sandbox import kernel
from mathmill.sandbox.forkserver import remove_tree
from mathmill.sandbox.frames import VERSION, FrameError, FrameReader, encode
from mathmill.sandbox.layers import held
from mathmill.sandbox.options import TOKEN, Address, SandboxOptions, address_of
from mathmill.sandbox.pool import Tiers, first_that_reaches, live_sessions_that_fit
from mathmill.sandbox.process import Ending, SessionProcess
from mathmill.sandbox.session import Session

MAX_OUTPUT = 100_000
OWN_DESCRIPTORS, DESCRIPTORS_A_SESSION = 100, 4
MAX_TIMEOUT_S = 3600.0
IN_FLIGHT = 4096
"""Requests of one connection that may wait for their answers; then it is not read from until some have gone out."""
GREETING_WITHIN_S = 10.0
LONGEST_GREETING = 1024
SHORTEST_TOKEN = 16


@dataclass
class Client:
    """One client's sessions. It may come back on a new connection; they end when it stays away."""

    sessions: dict[str, Session] = field(default_factory=dict)
    connections: int = 0
    farewell: asyncio.TimerHandle | None = None


class Supervisor:
    """All processes, all sessions, all clients of one address."""

    def __init__(self, options: SandboxOptions):
        self._options = options
        self.address = address_of(options)
        self._token = _token() if self.address.path is None else ""
        self._folder = self.address.path.parent if self.address.path else _private_folder()
        self._work = self._folder / f"work-{secrets.token_hex(4)}"
        self._tiers: Tiers
        self._about: dict[str, Any] = {}
        self._slots = asyncio.Semaphore(options.workers or len(os.sched_getaffinity(0)))
        self._room = asyncio.Lock()
        self._max_sessions = 0
        self._resident: dict[Session, None] = {}
        self._clients: dict[str, Client] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._conversations: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}
        self._stop = asyncio.Event()
        self._listens = self._stopping = False

    async def serve(self) -> None:
        """Come up, listen, say so on stdout, and answer until TERM or INT comes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        if self._options.until_stdin_closes:
            loop.add_reader(0, self._stop_at_end_of_input)
        self._prepare()
        opening = asyncio.ensure_future(self._open())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((opening, stopped), return_when="FIRST_COMPLETED")
            if opening.done():
                opening.result()
                await self._answer_clients(stopped)
        finally:
            opening.cancel()
            stopped.cancel()
            await self._end()

    async def _open(self) -> None:
        settings, layers = await first_that_reaches(self._options, str(self._work))
        self._tiers = Tiers(settings, self._options.spares)
        await self._tiers.open()
        self._about = {"layers": held(layers), "isolation": settings.isolation} | self._tiers.about

    async def _answer_clients(self, stopped: "asyncio.Task[Any]") -> None:
        listening = _listen(self.address)
        self._listens = True
        server = await asyncio.start_server(self._converse, sock=listening)
        where = self.address if self.address.path else "tcp:{}:{}".format(*listening.getsockname()[:2])
        print(f"ready {where} by {self._about['isolation']}, policy {self._options.policy}", flush=True)
        await stopped
        server.close()

    def _prepare(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            mode = self._folder.stat().st_mode
        except OSError as problem:
            raise UserError(f"sandbox: no folder {self._folder} for the socket: {problem.strerror}") from None
        if stat.S_IMODE(mode) & 0o077:
            own = self._folder / "sandbox" / "socket"
            raise UserError(
                f"sandbox: others may enter {self._folder}; take a folder of its own, made here: unix:{own}"
            )
        _clear_way(self.address)
        self._work.mkdir(mode=0o700)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        descriptors = hard if hard != resource.RLIM_INFINITY else 65536
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        fit = (descriptors - OWN_DESCRIPTORS) // DESCRIPTORS_A_SESSION - 2 * self._options.spares
        self._max_sessions = max(1, min(self._options.max_sessions or live_sessions_that_fit(), fit))
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)

    def _stop_at_end_of_input(self) -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            self._stop.set()

    async def _end(self) -> None:
        """Kill all, remove all."""
        self._stopping = True
        if self.address.path and self._listens:
            self.address.path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        conversations = [task for task in self._conversations.values() if task is not None]
        for writer in self._conversations:
            writer.transport.abort()
        if conversations:
            await asyncio.wait(conversations, timeout=0.5)
        if hasattr(self, "_tiers"):
            await self._tiers.close()
        remove_tree(str(self._work))
        if self._options.until_stdin_closes or not self.address.path:
            shutil.rmtree(self._folder, ignore_errors=True)

    # Sessions and their processes

    async def _take(self, session: Session, code: str) -> SessionProcess:
        """A process for a session. The session that is idle longest is parked where there are as many as may be."""
        async with self._room:  # first come, first served
            while len(self._resident) >= self._max_sessions:
                parked = next((other for other in self._resident if other.idle), None)
                if parked is not None:
                    await parked.park()
                else:  # all run or wait for a slot: one of them ends soon
                    await asyncio.sleep(0.01)
            self._resident[session] = None
        try:
            return await self._tiers.take(code)
        except BaseException:
            self._resident.pop(session, None)
            raise

    async def _give_back(self, session: Session, process: SessionProcess) -> None:
        self._resident.pop(session, None)
        await self._tiers.give_back(process)

    # Clients

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends or sends something that is no frame."""
        self._conversations[writer] = asyncio.current_task()
        name = ""
        try:
            frames = FrameReader(LONGEST_GREETING)
            name, rest = await asyncio.wait_for(self._greeted(reader, writer, frames), GREETING_WITHIN_S)
            await self._hear(self._clients[name], reader, writer, frames, rest)
        except ConnectionError:
            pass
        except (FrameError, asyncio.TimeoutError) as problem:
            print(f"sandbox: a connection ended: {problem or 'no greeting came'}", file=sys.stderr)
        finally:
            writer.close()
            self._conversations.pop(writer)
            if name:
                self._part(name)

    async def _greeted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: FrameReader
    ) -> tuple[str, list[dict[str, Any]]]:
        """The client's name, and what it said right after its greeting."""
        messages: list[dict[str, Any]] = []
        while not messages:
            data = await reader.read(LONGEST_GREETING)
            if not data:
                raise ConnectionError("it hung up before its greeting")
            messages = frames.feed(data)
        frames.limit = FrameReader().limit
        return self._welcome(messages[0], writer), messages[1:]

    async def _hear(
        self, client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: FrameReader,
        messages: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        room = asyncio.Semaphore(IN_FLIGHT)
        while True:
            for message in messages:
                await room.acquire()
                self._later(self._answer(client, message, writer)).add_done_callback(lambda task: room.release())
            data = await reader.read(65536)
            if not data:
                return
            messages = frames.feed(data)

    def _welcome(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> str:
        name, token = message.get("client"), message.get("token")
        if message.get("op") != "hello" or not isinstance(name, str) or not 8 <= len(name) <= 64:
            raise FrameError("no greeting")
        if self._token and not (isinstance(token, str) and hmac.compare_digest(token.encode(), self._token.encode())):
            writer.write(
                encode({"id": message.get("id"), "error": f"the token is wrong; give the sandbox's own in {TOKEN}"})
            )
            raise FrameError("a wrong token")
        writer.write(encode({"id": message.get("id"), "version": VERSION, "pid": os.getpid()} | self._about))
        client = self._clients.setdefault(name, Client())
        client.connections += 1
        if client.farewell:
            client.farewell.cancel()
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

    def _later(self, work: Any) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, client: Client, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = message.get("id")
        try:
            answer = await self._do(client, message)
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            answer = {"error": f"bad request: {type(problem).__name__}: {problem}"[:300]}
        if not writer.is_closing():
            writer.write(encode(answer | {"id": number if isinstance(number, int) else None}))
            try:
                await writer.drain()  # a client that does not read is not read from either
            except ConnectionError:
                pass

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
            return self._tiers.counts | {"sessions": sessions, "parked": sessions - len(self._resident)}
        raise ValueError(f"no operation {operation!r}")

    async def _run(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """Run a block. `index` counts the session's blocks from 0: the earlier ones of a session that is not here are asked
        for (`unknown`), and come as `earlier`."""
        name, code, number, index = (message[key] for key in ("session", "code", "id", "index"))
        timeout = min(float(message["timeout"]), MAX_TIMEOUT_S)
        max_output = message.get("max_output")
        max_output = self._options.max_output if max_output is None else min(int(max_output), MAX_OUTPUT)
        checked = isinstance(name, str) and isinstance(code, str) and isinstance(number, int) and isinstance(index, int)
        if not checked or len(name) > 64:
            raise ValueError("a field has a wrong value")
        if not timeout > 0:
            raise ValueError(f"timeout is {timeout}; give seconds, more than 0")
        if max_output < 0:
            raise ValueError(f"max_output is {max_output}; give characters, 0 or more")
        session = client.sessions.get(name)
        if session is None:
            earlier = message.get("earlier")
            if index > 0 and earlier is None:
                return {"unknown": True}
            session = Session(name, self._take, self._give_back, self._slots)
            if earlier:
                session.remember([_remembered(one) for one in earlier])
            client.sessions[name] = session
        elif session in self._resident:  # it is the one used last
            self._resident[session] = self._resident.pop(session)
        return await session.run(number, code, timeout, max_output)


def _remembered(block: dict[str, Any]) -> tuple[str, Ending]:
    code, status, wall_s = block["code"], block["status"], float(block["wall_s"])
    if not (isinstance(code, str) and isinstance(status, str) and 0 <= wall_s <= MAX_TIMEOUT_S):
        raise ValueError("an earlier block has a wrong value")
    return code, Ending(status, wall_s=wall_s)


def _token() -> str:
    """What clients must know. It leaves the environment."""
    token = os.environ.pop(TOKEN, "")
    if len(token) < SHORTEST_TOKEN:
        raise UserError(
            f"sandbox: on TCP anybody can come, so set {TOKEN} to a secret of {SHORTEST_TOKEN} characters or more"
        )
    return token


def _private_folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="mathmill-sandbox-"))


def _listen(address: Address) -> socket.socket:
    """A socket at the address."""
    path = address.path
    family = socket.AF_UNIX if path else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    _clear_way(address)
    try:
        if not path:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(str(path) if path else (address.host, address.port))
    except OSError as problem:
        remedy = "use a folder on a local disk" if path else "use port 0 for a free one, and a host of this machine"
        raise UserError(f"sandbox: cannot listen on {address}: {problem.strerror}; {remedy}") from None
    if path:
        path.chmod(0o600)
    listening.listen(1024)
    return listening


def _clear_way(address: Address) -> None:
    """A dead predecessor's socket is taken away, a living one's is not."""
    path = address.path
    if path and (path.exists() or path.is_symlink()):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UserError(f"sandbox: {path} is there already and is no socket; use another name")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
                raise UserError(f"sandbox: another sandbox serves on {path}; stop it, or use another socket")
            except ConnectionError:
                path.unlink(missing_ok=True)


async def serve(options: SandboxOptions) -> None:
    """Serve until told to stop."""
    await Supervisor(options).serve()
