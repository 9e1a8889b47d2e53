"""A session: blocks one after another in one namespace, which comes back by replay when its process was lost."""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from mathmill.sandbox.process import Ending, SessionProcess
from mathmill.sandbox.result import BlockResult, State, lost

ANSWERS_KEPT = 64
"""Of requests that are done; those that run or wait are all kept."""
REPLAY_SPARE_S = 2.0
"""A replayed block may take twice its first time and this much more."""
REPLAY_OUTPUT = 1000


class Session:
    """One namespace. At most one process at a time, none before the first block and none while it is parked."""

    def __init__(
        self, name: str, take: Callable[["Session", str], Awaitable[SessionProcess]],
        give_back: Callable[["Session", SessionProcess], Awaitable[None]], slots: asyncio.Semaphore,
    ):  # fmt: skip
        """`take` brings a process fit for code, `give_back` ends it, `slots` bounds how many blocks run at the same time."""
        self._seed = zlib.crc32(name.encode())
        self._take, self._give_back, self._slots = take, give_back, slots
        self._turn = asyncio.Lock()
        self._process: SessionProcess | None = None
        self._ran: list[tuple[str, Ending]] = []
        self._lost = ""
        self._had_process = self._fresh = False
        self._forgotten = -1
        self._commands = 0
        self._answers: OrderedDict[int, asyncio.Task[dict[str, Any]]] = OrderedDict()

    @property
    def idle(self) -> bool:
        """Whether no block runs or waits here."""
        return not self._turn.locked()

    def remember(self, earlier: list[tuple[str, Ending]]) -> None:
        """Blocks that ran elsewhere before: they are run once more before the next one."""
        self._ran, self._had_process = earlier, True

    async def run(self, request: int, code: str, timeout: float, max_output: int) -> dict[str, Any]:
        """Run a block once, however often the same request comes; the fields of its BlockResult, and whether its names are
        `kept` for the next."""
        task = self._answers.get(request)
        if task is None:
            if request <= self._forgotten:
                return vars(lost("this request was answered long ago"))
            task = self._answers[request] = asyncio.ensure_future(self._run(code, timeout, max_output))
            self._forget_old_answers()
        return await asyncio.shield(task)

    def _forget_old_answers(self) -> None:
        for request, task in list(self._answers.items()):
            if len(self._answers) <= ANSWERS_KEPT or not task.done():
                return
            del self._answers[request]
            self._forgotten = max(self._forgotten, request)

    async def park(self) -> None:
        """Give the process up to others; the names come back by replay."""
        async with self._turn:
            await self._drop_process()

    async def close(self) -> None:
        """End the process. Blocks in flight end as lost."""
        self._lost = "the session was closed"
        if self._process is not None:
            self._process.kill()
        async with self._turn:
            await self._drop_process()

    async def _run(self, code: str, timeout: float, max_output: int) -> dict[str, Any]:
        async with self._turn:
            while True:  # a process first, then a slot: whoever has a slot can run, so slots always come free
                process = await self._has_process(code)
                if process is None:
                    return vars(lost(self._lost))
                async with self._slots:
                    if process.alive and not self._lost:
                        return await self._run_once(process, code, timeout, max_output)

    async def _run_once(self, process: SessionProcess, code: str, timeout: float, max_output: int) -> dict[str, Any]:
        state = await self._restore(process)
        if state == "lost":
            return vars(lost(self._lost))
        ending = await self._run_in(process, code, timeout, max_output)
        result = lost(self._lost or ending.traceback)
        if not self._lost and ending.status != "lost":
            result = _result(process, ending, state, max_output)
        kept = process.alive
        if kept:
            self._ran.append((code, Ending(ending.status, wall_s=ending.wall_s)))
        else:
            await self._drop_process()
        return vars(result) | {"kept": kept}

    async def _run_in(self, process: SessionProcess, code: str, timeout: float, max_output: int) -> Ending:
        self._commands += 1
        command = {"id": self._commands, "number": len(self._ran) + 1, "code": code, "limit": max_output}
        return await process.run(command | {"seed": self._seed}, timeout)

    async def _has_process(self, code: str) -> SessionProcess | None:
        """A process that lives, new where there is none; None, and `_lost` says why, where that fails."""
        if self._process is not None and self._process.alive and not self._lost:
            return self._process
        await self._drop_process()
        if self._lost:
            return None
        self._fresh = True
        try:
            self._process = await self._take(self, "\n".join([*(earlier for earlier, _ in self._ran), code]))
        except OSError as problem:
            self._lost = f"no process for this session: {problem}"
        if self._lost:
            await self._drop_process()
        return self._process

    async def _restore(self, process: SessionProcess) -> State:
        """See that the process has the names of all earlier blocks; lost, and `_lost` says why, where that fails."""
        if not self._fresh:
            return "live"
        self._fresh = False
        if not self._had_process:
            self._had_process = True
            return "live"
        earlier, self._ran = self._ran, []
        for code, before in earlier:
            ending = await self._run_in(process, code, 2 * before.wall_s + REPLAY_SPARE_S, REPLAY_OUTPUT)
            if not self._lost and (ending.status != before.status or not process.alive):
                self._lost = f"the earlier blocks' names could not be made again: block {len(self._ran) + 1} ended as "
                self._lost += f"{ending.status}, before as {before.status}"
            if self._lost:
                await self._drop_process()
                return "lost"
            self._ran.append((code, before))
        return "replayed"

    async def _drop_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await self._give_back(self, process)


def _result(process: SessionProcess, ending: Ending, state: State, max_output: int) -> BlockResult:
    stdout, stdout_cut = process.stdout.text()
    stderr, stderr_cut = process.stderr.text()
    return BlockResult(
        status=ending.status,  # type: ignore[arg-type]
        stdout=stdout,
        stderr=stderr + ("\n[cut]\n" if stderr_cut and ending.traceback else "") + ending.traceback,
        result=ending.result,
        wall_s=round(ending.wall_s, 6),
        cpu_s=round(ending.cpu_s, 6),
        state=state,
        truncated=stdout_cut or stderr_cut or ending.cut,
    )
