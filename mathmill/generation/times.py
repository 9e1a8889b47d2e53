"""Where a worker's time goes: how many of its samples are at the server, run code, are graded; added up, noted now and then.

RUN/times/JOB.RESTART.worker.jsonl: a line at every change of phase, every 2 s in the beginning and every minute later. Each
holds sums since the worker's start, so the difference of two lines says what happened between them.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from mathmill.records import line_of

Phase = Literal["start", "work", "tail"]
"""Until the first request may be sent; while servers are full; when all that is left is under way and they are half empty."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0


class Gauge:
    """A number of things under way; `with` it around each. Adds up their seconds, and the seconds with any at all.

    What is under way here is so in `whole` as well.
    """

    def __init__(self, whole: "Gauge | None" = None) -> None:
        self.now = self.most = 0
        self.whole = whole
        self._sum_s = self._busy_s = 0.0
        self._since = time.monotonic()

    def __enter__(self) -> None:
        self._settle()
        self.now += 1
        self.most = max(self.most, self.now)
        if self.whole is not None:
            self.whole.__enter__()

    def __exit__(self, *_: object) -> None:
        self._settle()
        self.now -= 1
        if self.whole is not None:
            self.whole.__exit__()

    def _settle(self) -> None:
        now = time.monotonic()
        self._sum_s += self.now * (now - self._since)
        self._busy_s += (self.now > 0) * (now - self._since)
        self._since = now

    def sum_s(self) -> float:
        """Seconds of all things together."""
        return self._sum_s + self.now * (time.monotonic() - self._since)

    def busy_s(self) -> float:
        """Seconds with at least one."""
        return self._busy_s + (time.monotonic() - self._since if self.now else 0.0)


class TimesLine(msgspec.Struct, frozen=True, kw_only=True):
    """Sums since the worker's start, in seconds of samples: 3 requests of 2 s are 6 s, at whatever time they ran."""

    at: float
    """Seconds since 1970 on the worker's node."""
    phase: Phase
    """Of the time between the line before and this one."""
    generation_s: float
    """Waiting for a text, in the queue or at a server."""
    at_server_s: float
    """At a server."""
    busy_s: float
    """Seconds, of a clock, with anything at a server."""
    code_s: float
    grading_s: float
    num_rows: int
    num_tokens: int
    servers: dict[str, float] = {}
    """Of a pool: server's job to the seconds, of a clock, with anything of ours there."""


class Times:
    """Gauges of a worker and the file of their sums."""

    def __init__(self) -> None:
        self.generation, self.code, self.grading = Gauge(), Gauge(), Gauge()
        self.at_server = Gauge()
        self.num_rows = 0
        self._phase: Phase = "start"
        self._path: Path | None = None
        self._read: Callable[[], tuple[int, dict[str, float]]] = lambda: (0, {})

    def write_to(self, path: Path, read: Callable[[], tuple[int, dict[str, float]]]) -> None:
        """Begin the file. `read` gives what the client knows: tokens so far, and seconds with anything at each server."""
        self._path, self._read = path, read
        self.note()

    def go_on(self, is_more_to_begin: bool) -> None:
        """Say whether there is work to begin: without, the tail begins once the servers have half of what they once had."""
        self.change_to("work" if is_more_to_begin or self.at_server.now > self.at_server.most / 2 else "tail")

    def change_to(self, phase: Phase) -> None:
        if phase != self._phase:
            self.note()
            self._phase = phase

    async def keep_noting(self) -> None:
        """Until cancelled."""
        begun = time.monotonic()
        while True:
            since = time.monotonic() - begun
            await asyncio.sleep(min(max(FIRST_PAUSE_S, since / 50), LONGEST_PAUSE_S))
            self.note()

    def note(self) -> None:
        """Add a line. A file system that fails costs this line and nothing else."""
        if self._path is None:
            return
        num_tokens, servers = self._read()
        line = TimesLine(
            at=round(time.time(), 3),
            phase=self._phase,
            generation_s=round(self.generation.sum_s(), 3),
            at_server_s=round(self.at_server.sum_s(), 3),
            busy_s=round(self.at_server.busy_s(), 3),
            code_s=round(self.code.sum_s(), 3),
            grading_s=round(self.grading.sum_s(), 3),
            num_rows=self.num_rows,
            num_tokens=num_tokens,
            servers={job: round(seconds, 3) for job, seconds in servers.items()},
        )
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab") as stream:
                stream.write(line_of(line))
        except OSError:
            pass
