"""Clients of a sandbox: `AsyncSandbox`, and `Sandbox` with the same names for code that waits."""

import asyncio
import itertools
import math
import os
import secrets
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from mathmill.errors import UserError
from mathmill.sandbox.connection import Connection, SandboxLost, Started
from mathmill.sandbox.frames import MAX_REQUEST, VERSION, encode
from mathmill.sandbox.options import TOKEN, Address, options_from, read_address
from mathmill.sandbox.result import BlockResult, from_message, lost, too_large

GREETED_WITHIN_S = 10.0
LONGEST_TIMEOUT_S = 1e6
ROOM_FOR_ID = 64
"""Bytes that a request may still grow by when it gets its number."""
ANSWER_WITHIN_S = 30.0
"""A supervisor answers a question about itself in milliseconds, under load in a second."""
Answer = TypeVar("Answer")


class AsyncSandbox:
    """A sandbox, for asyncio. A thousand sessions may be open, and blocks of different sessions run side by side.

    What holds a session is found out at the start and said in `layers`; a policy is the least that must hold.
    """

    def __init__(self, address: Address, token: str = "", started: Started | None = None):
        self.address = address
        self._token, self._started = token, started
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._name = secrets.token_hex(16)
        self._numbers = itertools.count(1)
        self._closed = False
        self.layers: dict[str, bool] = {}
        self.about: dict[str, Any] = {}
        """isolation, libraries (imported already), display (what shows the last expression)."""

    @classmethod
    async def start(cls, policy: str = "standard", **options: Any) -> "AsyncSandbox":
        """Start a supervisor of one's own and connect. It ends at `close`, or when this process dies; if it is killed, the
        next request starts another.

        `policy`: strict, standard or trusted, the least that must hold; `options`: isolation, workers, max_sessions,
        memory_mb, max_output, spares, grace_s (`SandboxOptions`). UserError when the policy is more than can be had here,
        an option is none, or the supervisor does not start.
        """
        options_from(options | {"policy": policy})
        return await cls._beside(await asyncio.to_thread(Started, options | {"policy": policy}))

    @classmethod
    async def _beside(cls, started: Started) -> "AsyncSandbox":
        sandbox = cls(read_address(started.address), started=started)
        try:
            await sandbox._connected()
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    @classmethod
    async def connect(cls, address: str, token: str | None = None) -> "AsyncSandbox":
        """Connect to the supervisor at unix:PATH, PATH or tcp:HOST:PORT. UserError when none answers there.

        `token`: what a sandbox on TCP wants to be told; by default the environment's MATHMILL_SANDBOX_TOKEN.
        """
        sandbox = cls(read_address(address), os.environ.get(TOKEN, "") if token is None else token)
        try:
            await sandbox._connected()
        except OSError as problem:
            reason = getattr(problem, "strerror", None) or problem
            remedy = f"start one: python -m mathmill.sandbox serve --address {sandbox.address}"
            raise UserError(f"no sandbox answers at {address}: {reason}; {remedy}") from None
        return sandbox

    def session(self) -> "AsyncSession":
        """A new session, to be used as `async with sandbox.session() as session`."""
        return AsyncSession(self)

    async def stats(self) -> dict[str, int]:
        """How many children, spares, sessions and parked sessions the supervisor has; SandboxLost at once when it is gone.

        So it tells, after a block that was `lost`, whether only that session is.
        """
        try:
            told = await asyncio.wait_for(self.ask({"op": "stats"}), ANSWER_WITHIN_S)
        except asyncio.TimeoutError:
            problem = f"the sandbox at {self.address} has not answered for {ANSWER_WITHIN_S:.0f} s"
            raise SandboxLost(problem) from None
        return {name: number for name, number in told.items() if name != "id"}

    async def close(self) -> None:
        """Close all sessions; end the supervisor if it is one's own. What waits for an answer gets SandboxLost."""
        self._closed = True
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        if self._started is not None:
            await asyncio.to_thread(self._started.end)
            self._started = None

    async def __aenter__(self) -> "AsyncSandbox":
        return self

    async def __aexit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask the supervisor; on a broken connection once more, under the same number, so that nothing is done twice."""
        message["id"] = next(self._numbers)
        problem: Exception = SandboxLost("the sandbox was closed")
        for _ in range(2):
            try:
                answer = await (await self._connected()).ask(message)
            except (OSError, asyncio.TimeoutError) as broken:  # SandboxLost is an OSError
                problem = broken
                continue
            if "error" in answer:
                raise ValueError(f"the sandbox refused: {answer['error']}")
            return answer
        raise SandboxLost(f"the sandbox at {self.address} is gone: {problem}")

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._closed:
                raise SandboxLost("the sandbox was closed")
            if self._connection is None or not self._connection.open:
                started = self._started if self._connection is not None else None
                if started is not None and await asyncio.to_thread(started.died):
                    await self._begin_again(started)
                connection = Connection(*await self._opened())
                hello = {"op": "hello", "id": 0, "client": self._name, "token": self._token}
                try:
                    answer = await asyncio.wait_for(connection.ask(hello), GREETED_WITHIN_S)
                except asyncio.TimeoutError:
                    await connection.close()
                    raise SandboxLost("something listens there, but it does not answer as a sandbox does") from None
                except BaseException:
                    await connection.close()
                    raise
                if "error" in answer:
                    await connection.close()
                    raise UserError(f"the sandbox at {self.address} refuses: {answer['error']}")
                if answer.get("version") != VERSION:
                    raise UserError(
                        f"the sandbox at {self.address} speaks protocol {answer.get('version')}, not {VERSION}"
                    )
                self.layers = answer["layers"]
                self.about = {name: answer[name] for name in ("isolation", "libraries", "display")}
                self._connection = connection
            return self._connection

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.address.path is not None:
            return await asyncio.open_unix_connection(str(self.address.path))
        return await asyncio.open_connection(self.address.host, self.address.port)

    async def _begin_again(self, started: Started) -> None:
        """Our own supervisor was killed: another one takes its place."""
        await asyncio.to_thread(started.end)
        try:
            await asyncio.to_thread(started.begin)
        except UserError as problem:
            raise SandboxLost(str(problem)) from None
        self.address = read_address(started.address)


class AsyncSession:
    """One namespace that lives from block to block."""

    def __init__(self, sandbox: AsyncSandbox):
        self._sandbox = sandbox
        self._name = secrets.token_hex(8)
        self._blocks = 0
        self._closed = False
        self._ran: list[dict[str, Any]] = []
        """What another supervisor would need to make the names again."""

    async def run(self, code: str, timeout: float = 10.0, max_output: int | None = None) -> BlockResult:
        """Run a block; its result, whatever happens: `lost` when the sandbox or the session is gone.

        `timeout`: wall seconds, without the wait for a free processor; `max_output`: characters kept of stdout, stderr and
        result each, at most 100,000. Code of more than 4 MiB as JSON is an `error` and is not run. ValueError for arguments that
        make no sense.
        """
        if not isinstance(code, str):
            raise ValueError(f"code is {type(code).__name__}; give text")
        if not (isinstance(timeout, (int, float)) and 0 < timeout < math.inf):
            raise ValueError(f"timeout is {timeout!r}; give seconds, more than 0")
        message = {"op": "run", "session": self._name, "index": self._blocks, "code": code}
        message["timeout"] = min(timeout, LONGEST_TIMEOUT_S)
        message["max_output"] = max_output
        if self._closed:
            return lost("the session was closed")
        if len(encode(message)) > MAX_REQUEST - ROOM_FOR_ID:  # the supervisor would hang up on all our sessions
            return too_large(MAX_REQUEST >> 20)
        self._blocks += 1
        try:
            answer = await self._sandbox.ask(message)
            if "unknown" in answer:
                answer = await self._ask_elsewhere(message)
        except SandboxLost as problem:
            return lost(str(problem))
        result = from_message(answer)
        if answer.get("kept"):
            self._ran.append({"code": code, "status": result.status, "wall_s": result.wall_s})
        return result

    async def _ask_elsewhere(self, message: dict[str, Any]) -> dict[str, Any]:
        """The supervisor does not know this session, so it is another one than before: tell it the earlier blocks too."""
        message["earlier"] = self._ran
        if len(encode(message)) > MAX_REQUEST - ROOM_FOR_ID:
            raise SandboxLost("the sandbox no longer knows this session, and its blocks are too long to be sent again")
        return await self._sandbox.ask(message)

    async def close(self) -> None:
        """End the session's process. Blocks in flight, and later ones, are lost."""
        self._closed = True
        if self._blocks:
            try:
                await self._sandbox.ask({"op": "close", "session": self._name})
            except SandboxLost:
                pass

    async def __aenter__(self) -> "AsyncSession":
        return self

    async def __aexit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()


class Sandbox:
    """A sandbox for code that waits; threads may share it. It has `AsyncSandbox`'s names and, under the hood, is one."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._closing = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="sandbox client")
        self._thread.start()
        self._inner: AsyncSandbox

    @classmethod
    def start(cls, policy: str = "standard", **options: Any) -> "Sandbox":
        """See `AsyncSandbox.start`."""
        options_from(options | {"policy": policy})
        started = Started(options | {"policy": policy})  # in this thread, where Ctrl-C comes
        return cls()._opened(AsyncSandbox._beside(started))

    @classmethod
    def connect(cls, address: str, token: str | None = None) -> "Sandbox":
        """See `AsyncSandbox.connect`."""
        return cls()._opened(AsyncSandbox.connect(address, token))

    @property
    def layers(self) -> dict[str, bool]:
        """Which layers hold a session here."""
        return self._inner.layers

    @property
    def about(self) -> dict[str, Any]:
        """isolation, libraries, display."""
        return self._inner.about

    def session(self) -> "Session":
        """A new session, to be used as `with sandbox.session() as session`."""
        return Session(self, self._inner.session())

    def stats(self) -> dict[str, int]:
        """See `AsyncSandbox.stats`."""
        return self.wait(self._inner.stats())

    def close(self) -> None:
        """See `AsyncSandbox.close`."""
        with self._closing:
            if not self._loop.is_closed() and os.getpid() == self._pid:
                self.wait(self._inner.close())
                self._end_thread()

    def wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The outcome of something that the client's own thread does. SandboxLost after `close`, and in a fork."""
        if self._loop.is_closed() or os.getpid() != self._pid:
            work.close()
            raise SandboxLost(
                "the sandbox was closed" if os.getpid() == self._pid else "a fork has no sandbox; start another"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _opened(self, opening: Coroutine[Any, Any, AsyncSandbox]) -> "Sandbox":
        try:
            self._inner = self.wait(opening)
        except BaseException:
            self._end_thread()
            raise
        return self

    def _end_thread(self) -> None:
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _cancel_others() -> None:
    """Whatever else this loop has to do ends, so that nobody waits for it for ever."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Session:
    """`AsyncSession` for code that waits."""

    def __init__(self, sandbox: Sandbox, inner: AsyncSession):
        self._sandbox, self._inner = sandbox, inner

    def run(self, code: str, timeout: float = 10.0, max_output: int | None = None) -> BlockResult:
        """Run a block; its result, whatever happens. See `AsyncSession.run`."""
        try:
            return self._sandbox.wait(self._inner.run(code, timeout, max_output))
        except SandboxLost as problem:
            return lost(str(problem))

    def close(self) -> None:
        """End the session's process."""
        try:
            self._sandbox.wait(self._inner.close())
        except SandboxLost:
            pass

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
