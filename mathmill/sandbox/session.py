"""A session: blocks one after another in one namespace, which comes back by replay when its process was lost."""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from mathmill.sandbox.child import Child, Ending
from mathmill.sandbox.result import BlockResult, State, lost

ANSWERS_KEPT = 8
REPLAY_SPARE_S = 2.0
"""A replayed block may take twice its first time and this much more."""


class Session:
    """One namespace. At most one child at a time, none before the first block."""

    def __init__(
        self, name: str, take: Callable[[], Awaitable[Child]], give_back: Callable[[Child], Awaitable[None]],
        slots: asyncio.Semaphore,
    ):  # fmt: skip
        """`take` starts a child, `give_back` ends it, `slots` bounds how many blocks run at the same time."""
        self._seed = zlib.crc32(name.encode())
        self._take, self._give_back, self._slots = take, give_back, slots
        self._turn = asyncio.Lock()
        self._child: Child | None = None
        self._ran: list[tuple[str, Ending]] = []
        self._lost = ""
        self._had_child = False
        self._commands = 0
        self._answers: OrderedDict[int, asyncio.Task[dict[str, Any]]] = OrderedDict()

    async def run(self, request: int, code: str, timeout: float, max_output: int) -> dict[str, Any]:
        """Run a block once, however often the same request comes; the fields of its BlockResult."""
        task = self._answers.get(request)
        if task is None:
            task = self._answers[request] = asyncio.ensure_future(self._run(code, timeout, max_output))
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the child. Blocks in flight end as lost."""
        self._lost = "the session was closed"
        if self._child is not None:
            self._child.kill()
        async with self._turn:
            await self._drop_child()

    async def _run(self, code: str, timeout: float, max_output: int) -> dict[str, Any]:
        async with self._turn, self._slots:
            state = await self._restore()
            if self._child is None or state == "lost":
                return asdict(lost(self._lost))
            ending = await self._run_in(self._child, code, timeout, max_output)
            if self._lost:
                return asdict(lost(self._lost))
            result = _result(self._child, ending, state, max_output)
            if self._child.alive:
                self._ran.append((code, ending))
            else:
                await self._drop_child()
            return asdict(result)

    async def _run_in(self, child: Child, code: str, timeout: float, max_output: int) -> Ending:
        self._commands += 1
        command = {"id": self._commands, "number": len(self._ran) + 1, "code": code, "limit": max_output}
        return await child.run(command | {"seed": self._seed}, timeout)

    async def _restore(self) -> State:
        """See that a child with the names of all earlier blocks is there. None is, and `_lost` says why, if that fails."""
        if self._lost:
            return "lost"
        if self._child is not None and self._child.alive:
            return "live"
        await self._drop_child()
        try:
            child = self._child = await self._take()
        except OSError as problem:
            self._lost = f"no process for this session: {problem}"
            return "lost"
        if not self._had_child:
            self._had_child = True
            return "live"
        earlier, self._ran = self._ran, []
        for code, before in earlier:
            ending = await self._run_in(child, code, 2 * before.wall_s + REPLAY_SPARE_S, 1000)
            if ending.status != before.status or not child.alive:
                self._lost = f"the earlier blocks' names could not be made again: block {len(self._ran) + 1} ended as "
                self._lost += f"{ending.status}, before as {before.status}"
                await self._drop_child()
                return "lost"
            self._ran.append((code, before))
        return "replayed"

    async def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await self._give_back(child)


def _result(child: Child, ending: Ending, state: State, max_output: int) -> BlockResult:
    stdout, stdout_cut = child.stdout.text()
    stderr, stderr_cut = child.stderr.text()
    return BlockResult(
        status=ending.status,  # type: ignore[arg-type]
        stdout=stdout,
        stderr=stderr + ending.traceback,
        result=ending.result,
        wall_s=round(ending.wall_s, 6),
        cpu_s=round(ending.cpu_s, 6),
        state=state,
        truncated=stdout_cut or stderr_cut or ending.cut,
    )
