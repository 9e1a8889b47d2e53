"""Claims: which worker makes which shard, by files alone, on local disks and on NFS.

A claim is the file `SHARD.K`; whoever links it owns the shard; a takeover links K+1 and removes nothing. A worker lives as
long as its heartbeat file is touched; the age is judged against a file just touched on the same file system, since clocks
differ between nodes. Directory and negative-lookup caches may lag by a minute: two workers may then make one shard, which
costs work and never a row.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mathmill.files import publish_once, write_whole
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import Shard
from mathmill.run import Run

BEAT_S = 5.0
LEASE_S = 120.0


class WorkerCard(msgspec.Struct, frozen=True, kw_only=True):
    """Who a worker is: what its heartbeat file says."""

    host: str
    job: str
    restart: int
    pid: int
    pid_namespace: str
    boot: str
    """The machine's start, since machines may share a name."""
    nonce: str

    @property
    def name(self) -> str:
        return f"{self.host}-{self.job}-{self.restart}-{self.pid}-{self.nonce}"


def this_worker() -> WorkerCard:
    """This process, named so that no other is mistaken for it."""
    return WorkerCard(
        host=os.uname().nodename,
        job=os.environ.get("MATHMILL_JOB", "none"),
        restart=int(os.environ.get("MATHMILL_RESTART", "0")),
        pid=os.getpid(),
        pid_namespace=_pid_namespace(),
        boot=_boot(),
        nonce=secrets.token_hex(4),
    )


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "unknown"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


class Heartbeat:
    """A worker's file in RUN/workers, touched by a thread until the worker ends; its end gives back every claim."""

    def __init__(self, run: Run, card: WorkerCard, beat_s: float = BEAT_S) -> None:
        self.path = run.folder / "workers" / card.name
        write_whole(self.path, msgspec.json.encode(card))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(beat_s,), name="heartbeat", daemon=True)
        self._thread.start()

    def _beat(self, beat_s: float) -> None:
        while not self._ended.wait(beat_s):
            try:
                os.utime(self.path)
            except OSError:  # a file system that hiccups costs a claim at worst
                continue

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)


@dataclass
class Claims:
    """Takes shards for one worker."""

    run: Run
    card: WorkerCard
    beat_s: float = BEAT_S
    lease_s: float = LEASE_S
    _watched: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Worker -> (time of its last beat, our clock when we first saw that beat)."""

    @property
    def workers(self) -> Path:
        return self.run.folder / "workers"

    def take(self, folder: SetFolder, shards: Iterable[Shard]) -> tuple[Shard, int] | None:
        """Claim the first shard that nobody alive holds; its claim's number K with it.

        None of `shards` may be open here: so a claim of our own is one whose making was reported as failed (NFS may lose the
        answer of a link that succeeded), or of a shard that could not be published; we follow it ourselves.
        """
        claims = _highest(folder)
        gone: dict[str, bool] = {}
        now = self._now() if claims else 0.0
        for shard in shards:
            number, claim = claims.get(shard.name, (0, None))
            if claim is not None:
                holder = _content(claim)
                if holder not in gone:
                    gone[holder] = self._is_gone(holder, now)
                if not gone[holder]:
                    continue
            if publish_once(folder.claims / f"{shard.name}.{number + 1}", self.card.name):
                return shard, number + 1
        return None

    def others_may_be_gone(self, folder: SetFolder, shards: Iterable[Shard]) -> bool:
        """Whether a holder of one of these shards has not shown, since we watch it, that it lives: then waiting pays."""
        claims = _highest(folder)
        holders = {
            _content(folder.claims / f"{shard.name}.{claims[shard.name][0]}")
            for shard in shards
            if shard.name in claims
        }
        return any(self._may_be_gone(name) for name in holders - {self.card.name})

    def _may_be_gone(self, name: str) -> bool:
        try:
            beat = (self.workers / name).stat().st_mtime
        except OSError:
            return True
        first, since = self._watched.setdefault(name, (beat, time.monotonic()))
        return beat == first and time.monotonic() - since < self.lease_s + 2 * self.beat_s

    def _is_gone(self, name: str, now: float) -> bool:
        if name in (self.card.name, ""):  # an empty claim is nobody's
            return True
        heartbeat = self.workers / name
        try:
            card = msgspec.json.decode(heartbeat.read_bytes(), type=WorkerCard)
            if self._was_here(card):
                return True
            return now - heartbeat.stat().st_mtime > self.lease_s
        except (FileNotFoundError, msgspec.DecodeError):  # it ended well
            return True
        except OSError:  # a file system in trouble says nothing of the holder
            return False

    def _was_here(self, card: WorkerCard) -> bool:
        """Dead for certain: our own earlier attempt, or a process of this machine that is no more."""
        if card.job == self.card.job and card.restart < self.card.restart:
            return True
        ours = self.card
        same_machine = (card.host, card.boot, card.pid_namespace) == (ours.host, ours.boot, ours.pid_namespace)
        return same_machine and not _lives(card.pid)

    def _now(self) -> float:
        """The file system's clock, by a file touched there just now."""
        touched = self.workers / f".now-{self.card.name}"
        touched.touch()
        try:
            os.utime(touched)
            return touched.stat().st_mtime
        finally:
            touched.unlink(missing_ok=True)


def _highest(folder: SetFolder) -> dict[str, tuple[int, Path]]:
    """Shard name -> number and file of its highest claim."""
    highest: dict[str, tuple[int, Path]] = {}
    for path in folder.claims.glob("p*"):
        shard, _, number = path.name.rpartition(".")
        if number.isdigit() and int(number) > highest.get(shard, (0, path))[0]:
            highest[shard] = (int(number), path)
    return highest


def _content(path: Path) -> str:
    return path.read_text()


def _lives(pid: int) -> bool:
    """Whether a process of this machine is there; /proc may hide it (hidepid), a signal's permission does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
