"""Servers that clients of other jobs share: what they show, and what ends them. Standard library only.

RUN/servers/JOB.json    the address of a server that is ready, touched every BEAT_S while it serves
RUN/servers/JOB.gone    why this server will not come back by itself
RUN/servers/NAME.ended  the servers of launch NAME (RUN/jobs/NAME.json) have nothing left to do
RUN/progress/JOB        the last start of this server that was of use: it was ready while a worker lived
"""

import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.serving.address import Address, read_address, write_address

BEAT_S = 5.0
LEASE_S = 60.0
"""A server whose file was not touched for so long is taken for dead: what is in flight there is sent elsewhere."""
LOOK_S = 0.5
WORKER_LEASE_S = 120.0
LOOK_FOR_WORKERS_S = 30.0
WORK_LEFT = 75
"""Exit code of a server that ends before its job's limit: its script queues the task again (EX_TEMPFAIL)."""


@dataclass(frozen=True, kw_only=True)
class Gone:
    """Why a server ended, or never came, and will not come back by itself."""

    pool: str
    launch: str
    """Name of its job's files in RUN/jobs."""
    reason: str
    log: str


def clock_of(folder: Path) -> float:
    """The file system's clock, by a file touched there just now: nodes' own clocks differ."""
    touched = folder / f".now-{os.getpid()}-{secrets.token_hex(4)}"
    touched.touch()
    try:
        os.utime(touched)
        return touched.stat().st_mtime
    finally:
        touched.unlink(missing_ok=True)


def announced(servers: Path, pool: str | None = None, now: float | None = None) -> dict[str, tuple[Address, float]]:
    """Job -> address and seconds since its last beat, of every shared server that is announced; of all pools, or of one.

    `now`: seconds since 1970 instead of the file system's own clock.
    """
    found = {}
    now = clock_of(servers) if now is None else now
    for path in servers.glob("*.json"):
        try:
            with path.open() as stream:  # opening asks an NFS server anew, so the time is no cached one
                beat = os.fstat(stream.fileno()).st_mtime
            address = read_address(path)
        except (OSError, UserError):  # withdrawn meanwhile
            continue
        if address.pool is not None and pool in (None, address.pool):
            found[path.stem] = (address, now - beat)
    return found


def gone_servers(servers: Path, pool: str | None = None) -> dict[str, Gone]:
    """Job -> why it is gone for good; of all pools, or of one."""
    found = {}
    for path in sorted(servers.glob("*.gone")):
        try:
            gone = Gone(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if pool in (None, gone.pool):
            found[path.stem] = gone
    return found


def launches_of(jobs: Path, pool: str) -> Iterator[tuple[str, int]]:
    """Name and number of servers of every launch for this pool that Slurm took, whatever became of it."""
    for name in _submitted(jobs / "submitted.jsonl"):
        try:
            server = json.loads((jobs / f"{name}.json").read_text()).get("server")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(server, dict) and server.get("pool") == pool:
            yield name, int(server.get("num_servers", 1))


def _submitted(path: Path) -> Iterator[str]:
    """Names of the jobs in a run's list. A launch that was killed before it had submitted leaves files, and no line there."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield str(json.loads(line)["name"])
        except (ValueError, TypeError, KeyError):  # half-written just now
            continue


def tell_to_end(servers: Path, launches: list[str]) -> None:
    """Let every server of these launches end, those too that wait in a queue."""
    for name in launches:
        write_whole(servers / f"{name}.ended", "")


def is_over(address: Path, launch: str) -> bool:
    """Whether a server on several nodes ends: what its first task sees or has said."""
    return _told_to_end(address.parent, launch) or address.with_suffix(".gone").exists()


def _told_to_end(servers: Path, launch: str) -> bool:
    return (servers / f"{launch}.ended").exists()


class Duty:
    """A server's file, and when it has to end.

    Without a `pool` the file beats and nothing else: the server's job ends it. One of a pool ends when a worker says that
    nothing is left (exit code 0), when USR2 says that its job's limit is near (75, after `drain_s` in which what is in
    flight may finish), and when no worker of the run has lived for `idle_minutes`.
    """

    def __init__(
        self,
        path: Path,
        launch: str,
        pool: str | None,
        *,
        restart: str = "0",
        drain_s: float = 60,
        idle_minutes: float = 60,
    ) -> None:
        self.path = path
        self.pool = pool
        self._run = path.parent.parent
        self._launch = launch
        self._restart = restart
        self._drain_s = drain_s
        self._idle_s = 60 * idle_minutes
        self._address: Address | None = None
        self._drain_at: float | None = None
        self._told = False
        self._looked = self._beaten = self._seen = time.monotonic()
        self._looked_for_workers = 0.0
        self._was_of_use = False
        self._gone = path.with_suffix(".gone")
        if pool is None:
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # its job's main step drains; as main itself it just ends
        else:
            signal.signal(signal.SIGUSR2, self._on_usr2)
            self._gone.unlink(missing_ok=True)

    def _on_usr2(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def announce(self, address: Address) -> None:
        self._address = address
        write_address(self.path, address)
        self._looked_for_workers = 0.0  # whether this start was of use is noted at once

    def withdraw(self) -> None:
        """Take the announcement back, unless it is a later start's already."""
        try:
            if self._address is not None and read_address(self.path) == self._address:
                self.path.unlink(missing_ok=True)
        except UserError:
            pass
        self._address = None

    def ends_with(self) -> int | None:
        """The exit code with which it is time to end, None to go on. Called often; looks at files now and then."""
        if self.pool is None or time.monotonic() - self._looked < LOOK_S:
            self._beat()
            return None
        self._looked = time.monotonic()
        if _told_to_end(self.path.parent, self._launch):
            print("nothing is left to do: the server ends", flush=True)
            return 0
        if self._told:
            return self._drained()
        self._look_for_workers()
        if self._is_idle():
            self._looked_for_workers = 0.0  # somebody may have come since the last look
            self._look_for_workers()
        if self._is_idle():
            self.say_gone(f"no worker of the run lived for {self._idle_s / 60:g} minutes (server_idle_minutes)")
            return 0
        self._beat()
        return None

    def _drained(self) -> int | None:
        if self._drain_at is None:
            print(f"the time limit is near: what is in flight may finish within {self._drain_s:.0f} s", flush=True)
            self._drain_at = time.monotonic() + (self._drain_s if self._address else 0)
            self.withdraw()
        return WORK_LEFT if time.monotonic() >= self._drain_at else None

    def _look_for_workers(self) -> None:
        """Now and then: whether anybody is there to serve."""
        if time.monotonic() - self._looked_for_workers < min(
            LOOK_FOR_WORKERS_S, self._idle_s / 3 or LOOK_FOR_WORKERS_S
        ):
            return
        self._looked_for_workers = time.monotonic()
        workers = self._run / "workers"
        beats = []
        for path in workers.glob("[!.]*"):
            with suppress(OSError):  # it ended meanwhile
                beats.append(path.stat().st_mtime)
        try:
            now = clock_of(workers) if beats else 0.0
        except OSError:  # on a full disk this node's own clock must do
            now = time.time()
        if beats and now - max(beats) < WORKER_LEASE_S:
            self._seen = time.monotonic()
            self._note_use()

    def _is_idle(self) -> bool:
        return bool(self._idle_s) and time.monotonic() - self._seen > self._idle_s

    def is_of_no_use(self, max_idle_starts: int) -> bool:
        """Whether so many starts in a row were not ready while a worker lived. Says why it does not come back, if so."""
        try:
            last = int((self._run / "progress" / self.path.stem).read_text())
        except (OSError, ValueError):
            last = -1
        if self.pool is None or not max_idle_starts or int(self._restart) - 1 - last < max_idle_starts:
            return False
        self.say_gone(f"{max_idle_starts} starts in a row were of no use: no worker lived, or it was not ready in time")
        return True

    def _note_use(self) -> None:
        if self._address is not None and not self._was_of_use:
            with suppress(OSError):
                write_whole(self._run / "progress" / self.path.stem, f"{self._restart}\n")
                self._was_of_use = True

    def _beat(self) -> None:
        if self._address is None or time.monotonic() - self._beaten < BEAT_S:
            return
        self._beaten = time.monotonic()
        try:
            os.utime(self.path)
        except FileNotFoundError:
            write_address(self.path, self._address)
        except OSError:  # a file system that hiccups costs a place in the pool at worst
            pass

    def say_gone(self, reason: str) -> None:
        """Note why this server of a pool does not come back, for workers that wait and for the user."""
        print(reason, flush=True)
        if self.pool is not None:
            log = self._run / "logs" / f"{self._launch}.{self.path.stem}.log"
            gone = Gone(pool=self.pool, launch=self._launch, reason=reason, log=str(log))
            write_whole(self._gone, json.dumps(asdict(gone)) + "\n")
