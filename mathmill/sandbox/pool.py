"""The processes of sessions: forked on demand and ahead of it, from forking processes that are kept alive."""

import asyncio
import re
import sys
from collections import deque
from dataclasses import replace
from typing import Any

from mathmill.errors import UserError
from mathmill.sandbox import libraries
from mathmill.sandbox.forkserver import Isolation, Settings
from mathmill.sandbox.forkserver_client import ForkserverClient, WallsError
from mathmill.sandbox.layers import MODES, below_floor, why_no_namespaces
from mathmill.sandbox.options import SandboxOptions
from mathmill.sandbox.process import SessionProcess
from mathmill.sandbox.walls import Limits

WALLS_WITHIN_S, LIBRARIES_WITHIN_S = 20.0, 120.0
AGAIN_AFTER_S = (0.0, 0.0, 0.5, 2.0, 5.0)
"""Pauses before each try to start the forking process again."""
START_AGAIN_S = (0.1, 0.3, 1.0, 3.0)
USUAL_MB = 32
"""Memory that a session needs as a rule, and half as much again."""


def settings_for(isolation: Isolation, options: SandboxOptions, work: str) -> Settings:
    """What a forking process is told; `work` is a folder for the sessions' folders, where the mode has those."""
    return Settings(
        isolation=isolation,
        folders=libraries.folders(),
        search=libraries.search_path(),
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


async def first_that_reaches(options: SandboxOptions, work: str) -> tuple[Settings, dict[str, str]]:
    """The first mode that reaches the policy's floor, and what holds in it. UserError where none does."""
    missing = ""
    for mode in MODES if options.isolation == "auto" else (options.isolation,):
        settings = settings_for(mode, options, work)
        layers = await layers_of(settings)
        lacking = below_floor(options.policy, layers)
        if not lacking:
            if missing:
                print(f"sandbox: mode {mode} it is{missing}", file=sys.stderr)
            return settings, layers
        missing += f"; {mode}: {lacking}"
    missing += "".join(f"; {words}" for words in why_no_namespaces())
    raise UserError(
        f"sandbox policy '{options.policy}' is not reached here{missing}. See python -m mathmill.sandbox doctor"
    )


class Tiers:
    """Two pools where large libraries are wanted beside small ones: a fork costs what its parent has imported, and most
    sessions never use the large ones. The second comes up when code first names one of them."""

    def __init__(self, settings: Settings, spares: int):
        small = [name for name in settings.imported if name not in libraries.LARGE]
        large = [name for name in settings.imported if name in libraries.LARGE]
        self._named = re.compile(rf"\b({'|'.join(large)})\b") if large else None
        wanted = [small, settings.imported] if large else [small]
        self._pools = [
            Pool(replace(settings, imported=names, work=f"{settings.work}/{number}"), spares)
            for number, names in enumerate(wanted)
        ]

    async def open(self) -> None:
        """Bring the first pool up. UserError where that fails."""
        await self._pools[0].open()

    async def take(self, code: str) -> SessionProcess:
        """A process for a session that begins with this code. OSError when none comes up."""
        pool = self._pools[-1 if self._named is not None and self._named.search(code) else 0]
        try:
            await pool.open()
        except UserError as problem:
            raise OSError(str(problem)) from None
        return await pool.take()

    async def give_back(self, process: SessionProcess) -> None:
        """End a process that was taken."""
        for pool in self._pools:
            pool.given.discard(process)
        await process.close()

    @property
    def about(self) -> dict[str, Any]:
        """What shows the last expression, and which libraries most sessions find imported."""
        return self._pools[0].about

    @property
    def counts(self) -> dict[str, int]:
        """How many processes there are, and how many of them wait for a session."""
        spares = sum(len(pool.spares) for pool in self._pools)
        return {"children": sum(len(pool.given) for pool in self._pools) + spares, "spares": spares}

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(pool.close() for pool in self._pools))


class Pool:
    """Gives out processes that are ready, forked from one forking process. `open` first."""

    def __init__(self, settings: Settings, spares: int):
        self._settings, self._spares_wanted = settings, spares
        self._forkserver: ForkserverClient | None = None
        self._up = asyncio.Event()
        self._broken = ""
        self.given: set[SessionProcess] = set()
        self.spares: deque[SessionProcess] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._opened = self._closing = False
        self._starts = 0
        self.about: dict[str, Any] = {}
        """What shows the last expression, and which libraries were found and imported ahead."""

    async def open(self) -> None:
        """Start the forking process, once. UserError where it does not come up."""
        async with self._opening:
            if not self._opened:
                await self._start()
                self._opened = True

    async def take(self) -> SessionProcess:
        """A process that is ready, new or waiting. OSError when none comes up."""
        while self.spares:
            process = self.spares.popleft()
            if process.alive:
                return self._give(process)
            process.let_go()
        for pause in (*START_AGAIN_S, None):
            await self._up.wait()
            if self._broken:
                self._on_gone()
                raise OSError(self._broken)
            try:
                return self._give(await self._start_process())
            except OSError:
                if pause is None or self._closing:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """End all processes."""
        self._closing = True
        for task in (self._filling, self._starting):
            if task is not None:
                task.cancel()
        if self._forkserver is not None:
            await self._forkserver.end()
        for process in (*self.given, *self.spares):
            process.let_go()

    def _give(self, process: SessionProcess) -> SessionProcess:
        self.given.add(process)
        self._fill()
        return process

    async def _start(self) -> None:
        self._starts += 1
        own = replace(
            self._settings, work=f"{self._settings.work}/{self._starts}"
        )  # what a dead one left is not in the way
        forkserver = self._forkserver = ForkserverClient(own, self._on_gone)
        try:
            told = await asyncio.wait_for(asyncio.shield(forkserver.ready), LIBRARIES_WITHIN_S)
        except (WallsError, asyncio.TimeoutError) as problem:
            await forkserver.end()
            raise UserError(f"the sandbox's forking process did not come up: {problem or 'no answer'}") from None
        self.about = {"display": told["display"], "libraries": told["libraries"]}
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
        for process in [process for process in self.spares if not process.alive]:
            self.spares.remove(process)
            process.let_go()
        while len(self.spares) < self._spares_wanted and not self._closing:
            try:
                self.spares.append(await self._start_process())
            except OSError:
                return


def live_sessions_that_fit() -> int:
    """How many sessions' processes half of the memory that is free now takes."""
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    return max(16, min(1024, min(free, _limit_of_cgroup()) // 2 // (USUAL_MB << 20)))


def _limit_of_cgroup() -> int:
    """Bytes that a job may use, where its cgroup says so: version 2, then 1."""
    least = 1 << 62
    try:
        with open("/proc/self/cgroup") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return least
    for _, kinds, path in lines:
        names = {"": f"/sys/fs/cgroup{path}/memory.max", "memory": f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes"}
        try:
            with open(names[kinds]) as file:
                least = min(least, int(file.read()))
        except (KeyError, OSError, ValueError):
            pass
    return least
