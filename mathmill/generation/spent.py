"""What the starts of a run's servers and workers did with their time, read back from RUN/times."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from mathmill.generation.times import TimesLine
from mathmill.run import Run

PARTS = ("server start", "generation", "code", "grading", "waiting", "tail", "end")
"""What a second of an allocation was for. In the work phase a second is divided among what the samples under way did in it."""


@dataclass(frozen=True)
class Spent:
    """An allocation's seconds by what they were for, and the seconds in which its server had work."""

    parts: dict[str, float]
    busy_s: float
    has_server: bool

    @property
    def wall_s(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class WorkerRecord:
    """The lines of one start of a worker."""

    job: str
    restart: int
    lines: list[TimesLine]

    @property
    def work_begun(self) -> float:
        """When the first request could be sent; when it ended, where it never came to that."""
        return next(
            (before.at for before, line in self.steps() if line.phase != "start"),
            self.lines[-1].at,
        )

    @property
    def tail_begun(self) -> float:
        """When there was nothing left to begin, for the last time."""
        begun = self.lines[-1].at
        for before, line in reversed(list(self.steps())):
            if line.phase != "tail":
                break
            begun = before.at
        return begun

    def steps(self) -> Iterable[tuple[TimesLine, TimesLine]]:
        return zip(self.lines, self.lines[1:], strict=False)

    def up_to(self, moment: float) -> TimesLine:
        """The sums at this moment, to the nearest line before it."""
        return next((line for line in reversed(self.lines) if line.at <= moment), self.lines[0])


@dataclass(frozen=True)
class ServerRecord:
    """The events of one start of a server, in seconds since 1970."""

    job: str
    restart: int
    events: dict[str, float] = field(default_factory=dict)


def worker_records(run: Run) -> list[WorkerRecord]:
    """Those of all starts of workers that wrote a line."""
    found = []
    for path in sorted(run.times.glob("*.worker.jsonl")):
        job, restart = path.name.removesuffix(".worker.jsonl").rsplit(".", 1)
        lines = _lines(path)
        if lines:
            found.append(WorkerRecord(job, int(restart), lines))
    return found


def server_records(run: Run) -> dict[tuple[str, int], ServerRecord]:
    """By job and restart."""
    found = {}
    for path in sorted(run.times.glob("*.server.jsonl")):
        job, restart = path.name.removesuffix(".server.jsonl").rsplit(".", 1)
        record = ServerRecord(job, int(restart))
        for line in _whole_lines(path):
            try:
                event = json.loads(line)
                record.events[event["event"]] = float(event["at"])
            except (ValueError, KeyError, TypeError):
                continue
        found[job, int(restart)] = record
    return found


def _whole_lines(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].splitlines()


def _lines(path: Path) -> list[TimesLine]:
    found = []
    for line in _whole_lines(path):
        try:
            found.append(msgspec.json.decode(line, type=TimesLine))
        except msgspec.DecodeError:
            continue
    return found


def spent_by_worker(record: WorkerRecord, begun: float, ended: float, has_server: bool) -> Spent:
    """What a worker's allocation did, from its begin to its end in seconds since 1970."""
    first, last = record.lines[0], record.lines[-1]
    work, tail = record.work_begun, record.tail_begun
    at_begin, at_tail = record.up_to(work), record.up_to(tail)
    sums = {
        "generation": at_tail.at_server_s - at_begin.at_server_s,
        "code": at_tail.code_s - at_begin.code_s,
        "grading": at_tail.grading_s - at_begin.grading_s,
        "waiting": max(0.0, at_tail.generation_s - at_begin.generation_s - at_tail.at_server_s + at_begin.at_server_s),
    }
    wall, whole = max(0.0, tail - work), sum(sums.values())
    shares = {name: wall * value / whole for name, value in sums.items()} if whole > 0 else {"waiting": wall}
    parts = dict.fromkeys(PARTS, 0.0) | shares
    parts |= {"server start": max(0.0, work - min(begun, first.at)), "tail": max(0.0, last.at - tail)}
    parts["end"] = max(0.0, ended - last.at)
    return Spent(parts, last.busy_s, has_server)


def spent_by_server(record: ServerRecord, workers: list[WorkerRecord], begun: float, ended: float) -> Spent:
    """What the allocation of a shared server did. With several workers its busy time is at least that of the busiest."""
    ready = record.events.get("ready", ended)
    told = min(record.events.get("ended", ended), ended)
    tail = min(max((worker.tail_begun for worker in workers), default=told), told)
    busy = max((worker.lines[-1].servers.get(record.job, 0.0) for worker in workers), default=0.0)
    busy_then = max((worker.up_to(tail).servers.get(record.job, 0.0) for worker in workers), default=0.0)
    parts = dict.fromkeys(PARTS, 0.0)
    parts["server start"] = max(0.0, min(ready, told) - begun)
    if ready < told:
        working = max(0.0, tail - ready)
        parts["generation"] = min(busy_then, working)
        parts["waiting"] = working - parts["generation"]
        parts["tail"] = max(0.0, told - max(tail, ready))
    parts["end"] = max(0.0, ended - told)
    return Spent(parts, min(busy, max(0.0, told - ready)), True)


def added(many: Iterable[Spent]) -> Spent:
    """The sum of several; busy time counts for those with a server alone."""
    whole = Spent(dict.fromkeys(PARTS, 0.0), 0.0, False)
    for one in many:
        parts = {name: whole.parts[name] + one.parts[name] for name in PARTS}
        whole = replace(
            whole,
            parts=parts,
            busy_s=whole.busy_s + one.busy_s * one.has_server,
            has_server=whole.has_server or one.has_server,
        )
    return whole
