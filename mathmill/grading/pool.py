"""Grading in processes that can be killed: a wall limit from outside, a memory limit, every pair asked once."""

import asyncio
import contextlib
import math
import multiprocessing
import resource
import signal
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import cast

from pebble import ProcessPool

from mathmill.errors import UserError
from mathmill.grading.compare import grade_quickly, grade_slowly
from mathmill.grading.policy import policy_named
from mathmill.parent import die_with_parent, hide_environment
from mathmill.records import Grade

LEAST_MEMORY_MB, MOST_MEMORY_MB = 256, 1 << 20
"""SymPy itself takes the least."""
ANSWERS_A_WORKER = 2000
"""After so many a worker is replaced: SymPy's caches only grow."""
KNOWN_VERDICTS = 200_000
LONGEST_REMEMBERED = 300
"""Characters of a pair: the verdict of a longer one is not kept, so that what is remembered stays below 200 MB."""


class GradingPool:
    """`grade` for many at once and for hostile answers. Processes start when the first answer needs SymPy."""

    def __init__(self, workers: int = 2, timeout_s: float = 10.0, memory_mb: int = 1024, policy: str = "default"):
        """`timeout_s`: wall seconds one comparison may take; `memory_mb`: address space of one worker."""
        policy_named(policy)
        if workers < 1:
            raise UserError(f"--workers must be at least 1, not {workers}")
        if not 0 < timeout_s < math.inf:
            raise UserError(f"--timeout_s must be above 0 seconds, not {timeout_s}")
        if not LEAST_MEMORY_MB <= memory_mb <= MOST_MEMORY_MB:
            raise UserError(f"--memory_mb must be {LEAST_MEMORY_MB} to {MOST_MEMORY_MB}, not {memory_mb}")
        self.policy = policy
        self._workers, self._timeout_s, self._memory_mb = workers, timeout_s, memory_mb
        self._pool: Future[ProcessPool] | None = None
        """Since the first answer that needs it: until then no process is started."""
        self._known: OrderedDict[tuple[str | None, str | None], Grade] = OrderedDict()
        self._asked: dict[tuple[str, str], Future[Grade]] = {}

    async def grade(self, predicted: str | None, expected: str | None) -> Grade:
        """The verdict; `timeout` and `crash` mean that nobody could tell. Identical pairs are compared once."""
        return self.grade_now(predicted, expected) or await self._slowly(cast(str, predicted), cast(str, expected))

    def grade_now(self, predicted: str | None, expected: str | None) -> Grade | None:
        """The verdict that is known already or takes microseconds; None where a worker must be asked."""
        pair = predicted, expected
        verdict = self._known.get(pair)
        if verdict is None:
            verdict = grade_quickly(predicted, expected, self.policy)
            if verdict is not None:
                self._remember(pair, verdict)
        return verdict

    async def _slowly(self, predicted: str, expected: str) -> Grade:
        pair = predicted, expected
        asked = self._asked.get(pair) or await self._ask(*pair) or await self._ask(*pair)
        if asked is None:
            return Grade(is_correct=None, rule="crash")
        try:
            verdict = await asyncio.shield(asyncio.wrap_future(asked))
        except asyncio.TimeoutError:
            verdict = Grade(is_correct=None, rule="timeout")
        except asyncio.CancelledError:
            if not asked.cancelled():
                raise
            verdict = Grade(is_correct=None, rule="crash")
        except Exception:
            verdict = Grade(is_correct=None, rule="crash")
        self._asked.pop(pair, None)
        if verdict.rule != "crash":  # the next one who asks may be luckier
            self._remember(pair, verdict)
        return verdict

    def _remember(self, pair: tuple[str | None, str | None], verdict: Grade) -> None:
        if len(pair[0] or "") + len(pair[1] or "") <= LONGEST_REMEMBERED:
            self._known[pair] = verdict
            if len(self._known) > KNOWN_VERDICTS:
                self._known.popitem(last=False)

    def close(self) -> None:
        """End the workers; comparisons in flight end as `crash`."""
        if self._pool is not None:
            self._discard(self._pool)
        self._asked.clear()
        self._known.clear()

    async def _ask(self, predicted: str, expected: str) -> "Future[Grade] | None":
        """Give a pair to the workers; None where they, or the process that forks them, were killed.

        They start in a thread, once for all who wait: it takes seconds, and requests go on meanwhile.
        """
        if self._pool is None:
            threads = ThreadPoolExecutor(1)
            self._pool = threads.submit(self._start)
            threads.shutdown(wait=False)
        starting = self._pool
        try:
            pool = await asyncio.shield(asyncio.wrap_future(starting))
            if (predicted, expected) not in self._asked:  # by another one who waited
                self._asked[predicted, expected] = pool.schedule(
                    grade_slowly, args=(predicted, expected, self.policy), timeout=self._timeout_s
                )
            return self._asked[predicted, expected]
        except (RuntimeError, OSError):
            self._discard(starting)
            return None

    def _discard(self, started: "Future[ProcessPool]") -> None:
        """End a pool; the next comparison starts another one. One that does not start within 5 s is left to its parent's end."""
        if self._pool is not started:  # another one who waited was first
            return
        self._pool = None
        with contextlib.suppress(FutureTimeout, RuntimeError, OSError):
            pool = started.result(timeout=5)
            pool.stop()
            pool.join(timeout=5)

    def _start(self) -> ProcessPool:
        # Workers are forked by a small process that has SymPy loaded: a replaced worker is ready in milliseconds,
        # and threads of this process are never forked.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mathmill.grading.preloaded"])
        pool = ProcessPool(
            max_workers=self._workers,
            max_tasks=ANSWERS_A_WORKER,
            initializer=_prepare_worker,
            initargs=(self._memory_mb,),
            context=context,
        )
        if not pool.active:  # asking starts it
            raise RuntimeError("the workers do not start")
        return pool


def grade_all(pairs: Sequence[tuple[str | None, str | None]], pool: GradingPool) -> list[Grade]:
    """The verdicts of (predicted, expected) pairs, in their order; the workers get all that need them at once."""
    quick = [pool.grade_now(*pair) for pair in pairs]

    async def ask() -> list[Grade]:
        left = (pair for pair, verdict in zip(pairs, quick, strict=True) if verdict is None)
        return await asyncio.gather(*(pool.grade(*pair) for pair in left))

    slow = iter(asyncio.run(ask()) if None in quick else [])
    return [verdict or next(slow) for verdict in quick]


def _prepare_worker(memory_mb: int) -> None:
    """In the worker: die with the parent, also when it is killed; leave Ctrl-C to the parent; bound the memory."""
    import mathmill.grading.symbolic  # noqa: F401  no comparison's time limit pays for SymPy's import

    hide_environment()
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
