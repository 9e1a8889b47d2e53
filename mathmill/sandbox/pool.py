"""The processes of sessions: forked on demand and ahead of it, at most so many, from a forking process that is kept alive."""

import asyncio
import sys
from collections import deque
from dataclasses import replace

from mathmill.errors import UserError
from mathmill.sandbox import libraries
from mathmill.sandbox.forkserver import Isolation, Settings, remove_tree
from mathmill.sandbox.forkserver_client import ForkserverClient, WallsError
from mathmill.sandbox.layers import MODES, below_floor
from mathmill.sandbox.options import SandboxOptions
from mathmill.sandbox.process import SessionProcess
from mathmill.sandbox.walls import Limits

WALLS_WITHIN_S, LIBRARIES_WITHIN_S = 20.0, 120.0
AGAIN_AFTER_S = (0.0, 0.0, 0.5, 2.0, 5.0)
"""Pauses before each try to start the forking process again."""
START_AGAIN_S = (0.1, 0.3, 1.0, 3.0)


def settings_for(isolation: Isolation, options: SandboxOptions, work: str) -> Settings:
    """What a forking process is told; `work` is a folder for the sessions' folders, where the mode has those."""
    return Settings(
        isolation=isolation,
        folders=libraries.folders(),
        imported=options.libraries.split(","),
        work="/tmp" if isolation == "bubblewrap" else work,
        limits=Limits(memory_mb=options.memory_mb),
        insists=options.policy != "trusted",
    )


async def layers_of(settings: Settings) -> dict[str, str]:
    """Which layers hold in a mode, found out by a forking process that only tries them."""
    try:
        forkserver = ForkserverClient(replace(settings, only_probe=True))
    except OSError as problem:
        return {"session": str(problem)}
    try:
        return await asyncio.wait_for(forkserver.layers, WALLS_WITHIN_S)
    except (WallsError, asyncio.TimeoutError) as problem:
        return {"session": str(problem) or "no answer"}
    finally:
        await forkserver.end()


class Pool:
    """Gives out processes that are ready. `open` first."""

    def __init__(self, options: SandboxOptions, work: str):
        """`work`: a folder of the pool's own."""
        self._options, self._work = options, work
        self.isolation = options.isolation
        self._settings: Settings
        self._forkserver: ForkserverClient | None = None
        self._up = asyncio.Event()
        self._broken = ""
        self._given: set[SessionProcess] = set()
        self._spares: deque[SessionProcess] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._opened = self._closing = False
        self.layers: dict[str, str] = {}
        self.libraries: list[str] = []
        self.display = ""

    async def open(self) -> None:
        """Find a mode that reaches the policy's floor, and start. UserError where none does."""
        missing = ""
        for mode in MODES if self.isolation == "auto" else (self.isolation,):
            settings = settings_for(mode, self._options, self._work)
            layers = await layers_of(settings)
            lacking = below_floor(self._options.policy, layers)
            missing += f"; {mode}: {lacking}"
            if not lacking:
                self.isolation, self._settings, self.layers = mode, settings, layers
                await self._start()
                self._opened = True
                return
        raise UserError(
            f"sandbox policy '{self._options.policy}' is not reached here{missing}. See python -m mathmill.sandbox doctor"
        )

    async def take(self) -> SessionProcess:
        """A process that is ready, new or waiting. OSError when none comes up."""
        while self._spares:
            process = self._spares.popleft()
            if process.alive:
                self._given.add(process)
                self._fill()
                return process
            process.let_go()
        for pause in (*START_AGAIN_S, None):
            await self._up.wait()
            if self._broken:
                self._on_gone()
                raise OSError(self._broken)
            try:
                process = await self._start_process()
            except OSError:
                if pause is None or self._closing:
                    raise
                await asyncio.sleep(pause)
                continue
            self._given.add(process)
            self._fill()
            return process
        raise OSError("no process became ready")

    async def give_back(self, process: SessionProcess) -> None:
        """End a process that was taken."""
        self._given.discard(process)
        await process.close()

    @property
    def counts(self) -> dict[str, int]:
        """How many processes there are, and how many of them wait for a session."""
        return {"children": len(self._given) + len(self._spares), "spares": len(self._spares)}

    async def close(self) -> None:
        """End all processes, remove what they left."""
        self._closing = True
        for task in (self._filling, self._starting):
            if task is not None:
                task.cancel()
        if self._forkserver is not None:
            await self._forkserver.end()
        for process in (*self._given, *self._spares):
            process.let_go()
        remove_tree(self._work)

    async def _start(self) -> None:
        forkserver = self._forkserver = ForkserverClient(self._settings, self._on_gone)
        try:
            told = await asyncio.wait_for(asyncio.shield(forkserver.ready), LIBRARIES_WITHIN_S)
        except (WallsError, asyncio.TimeoutError) as problem:
            await forkserver.end()
            raise UserError(f"the sandbox's forking process did not come up: {problem or 'no answer'}") from None
        self.libraries, self.display = told["libraries"], told["display"]
        self._up.set()
        self._fill()

    def _on_gone(self) -> None:
        """The forking process is gone: another one is started, unless it was ended by us."""
        self._up.clear()
        if self._opened and not self._closing and self._starting is None:
            self._starting = asyncio.ensure_future(self._start_again())

    async def _start_again(self) -> None:
        print("sandbox: the forking process died; another one starts", file=sys.stderr)
        for pause in AGAIN_AFTER_S:
            await asyncio.sleep(pause)
            try:
                await self._start()
            except (UserError, OSError) as problem:
                self._broken = str(problem)
                continue
            self._broken = ""
            break
        self._starting = None
        self._up.set()

    async def _start_process(self) -> SessionProcess:
        assert self._forkserver is not None
        process = self._forkserver.start_process()
        if not await process.ready():
            await process.close()
            raise OSError("a session's process did not become ready")
        return process

    def _fill(self) -> None:
        """See that enough spares are there or on their way."""
        if not self._closing and (self._filling is None or self._filling.done()):
            self._filling = asyncio.ensure_future(self._start_spares())

    async def _start_spares(self) -> None:
        while len(self._spares) < self._options.spares and not self._closing:
            try:
                self._spares.append(await self._start_process())
            except OSError:
                return


def live_sessions_that_fit(memory_per_session_mb: int = 32) -> int:
    """How many sessions' processes half of the memory that is free now takes, at what one needs as a rule."""
    with open("/proc/meminfo") as file:
        free_kb = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return max(16, min(1024, free_kb // 2048 // memory_per_session_mb))
