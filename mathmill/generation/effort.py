"""What each start of a worker did and how long it was at work: a file of its own, kept after its end, for rates and costs."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mathmill.files import write_whole
from mathmill.generation.claims import LEASE_S
from mathmill.run import Run

NOTE_S = 15.0
RECENT_S = 180.0


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's own counts so far: `RUN/efforts/WORKER.json`."""

    job: str
    restart: int
    begun_at: float
    """Seconds since 1970, by its node's clock."""
    wall_s: float
    busy_s: float
    """Seconds in which at least one request was at its server."""
    num_rows: int
    num_correct: int
    num_tokens: int
    rows_per_s: float
    """Over the last three minutes."""


@dataclass
class Counts:
    """What is counted at a moment."""

    busy_s: float
    num_rows: int
    num_correct: int
    num_tokens: int


class EffortNotes:
    """Writes the counts of a worker down every few seconds and at its end; `with` it around the work."""

    def __init__(self, run: Run, worker: str, job: str, restart: int, count: Callable[[], Counts]) -> None:
        self.path = run.folder / "efforts" / f"{worker}.json"
        self._job, self._restart, self._count = job, restart, count
        self._begun, self._begun_at = time.monotonic(), time.time()
        self._recent: deque[tuple[float, int]] = deque([(self._begun, 0)])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="effort", daemon=True)

    def __enter__(self) -> "EffortNotes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ended.wait(NOTE_S):
            self._note()
        self._note()

    def _note(self) -> None:
        counts, now = self._count(), time.monotonic()
        while len(self._recent) > 1 and now - self._recent[0][0] > RECENT_S:
            self._recent.popleft()
        since, before = self._recent[0]
        self._recent.append((now, counts.num_rows))
        effort = Effort(
            job=self._job,
            restart=self._restart,
            begun_at=self._begun_at,
            wall_s=now - self._begun,
            busy_s=counts.busy_s,
            num_rows=counts.num_rows,
            num_correct=counts.num_correct,
            num_tokens=counts.num_tokens,
            rows_per_s=(counts.num_rows - before) / max(now - since, 1e-9),
        )
        try:
            write_whole(self.path, msgspec.json.encode(effort))
        except OSError:  # a figure is not worth a run
            pass


def efforts(run: Run) -> list[Effort]:
    """Those of all starts of all workers."""
    return _read(sorted((run.folder / "efforts").glob("*.json")))


def live_workers(run: Run) -> set[str]:
    """Names of the workers whose heart beats, by this machine's clock."""
    return {path.name for path in (run.folder / "workers").glob("[!.]*") if _age_s(path) < LEASE_S}


def live_efforts(run: Run) -> list[Effort]:
    """Those of the workers that live."""
    return _read([run.folder / "efforts" / f"{name}.json" for name in sorted(live_workers(run))])


def _read(paths: list[Path]) -> list[Effort]:
    found = []
    for path in paths:
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Effort))
        except (OSError, msgspec.DecodeError):  # not written yet, or by another version
            continue
    return found


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")
