"""What a process's descendants use, as /proc tells: CPU, memory, descriptors. Standard library only."""

import os
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")


class CPU(NamedTuple):
    """Seconds of CPU, in programs and in the kernel."""

    user: float
    system: float

    def since(self, before: "CPU") -> "CPU":
        """What came to it since then."""
        return CPU(self.user - before.user, self.system - before.system)

    @property
    def total(self) -> float:
        return self.user + self.system


def children(pid: int) -> list[int]:
    """Children of a process, those of other pid namespaces too, and the dead that nobody has waited for."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, listing.read_text().split())
        except OSError:  # the thread ended
            pass
    return found


def descendants(pid: int) -> list[int]:
    """Descendants of a process."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def stat_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def cpu_of_descendants() -> CPU:
    """CPU of all processes that this one started, their descendants, and all of these that ended and were waited for.

    A process that moves from the living to the waited-for while /proc is read may be missed: read it in a quiet moment.
    """
    times = os.times()
    user, system = times.children_user, times.children_system
    for pid in descendants(os.getpid()):
        fields = [int(field) / TICKS for field in stat_of(pid)[11:15]]
        if fields:
            user, system = user + fields[0] + fields[2], system + fields[1] + fields[3]
    return CPU(user, system)


def memory_mb(pid: int) -> dict[str, float]:
    """/proc/PID/smaps_rollup in MB, by its names (Rss, Pss, Private_Dirty ...); empty where it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name: int(size.split()[0]) / 1000 for name, size in (line.split(":") for line in lines)}


def descriptors(pid: int) -> int:
    """Open descriptors of a process; 0 where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
