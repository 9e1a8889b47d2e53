"""Which layers hold: each is tried from inside a session, by what it should refuse."""

import mmap
import os
import resource
import socket
from collections.abc import Callable

from mathmill.sandbox import kernel, walls

LAYERS = (
    "own users", "own processes", "own files", "own network", "files: Landlock", "system calls", "no capabilities",
    "no new privileges", "limits",
)  # fmt: skip
NEEDS_NAMESPACES = "this mode has no namespaces"


def layers(isolation: str, landlock_version: int) -> dict[str, str]:
    """Each layer, and nothing where it holds, else why it does not. To be called in a session that is bound."""
    with_namespaces = isolation == "namespaces"
    found = {
        "own users": _why_not(_identity) if with_namespaces else NEEDS_NAMESPACES,
        "own processes": _why_not(_alone) if with_namespaces else NEEDS_NAMESPACES,
        "own files": _why_not(_own_files) if with_namespaces else NEEDS_NAMESPACES,
        "own network": "" if with_namespaces else NEEDS_NAMESPACES,
        "files: Landlock": "not needed beside own files" if with_namespaces else _landlock(landlock_version),
        "system calls": _why_not(_system_calls),
        "no capabilities": "one is left" if kernel.has_capabilities() else "",
        "no new privileges": "" if kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1 else "not set",
        "limits": _why_not(_limits),
    }
    return found


def _why_not(holds: Callable[[], bool]) -> str:
    try:
        return "" if holds() else f"tried, and it did not hold: {holds.__name__.strip('_').replace('_', ' ')}"
    except OSError as problem:
        return str(problem)


def _identity() -> bool:
    return os.getresuid() == (walls.NOBODY,) * 3


def _alone() -> bool:
    return os.getpid() == 1 and os.getppid() == 0


def _own_files() -> bool:
    """A read-only tree without /proc, and a folder that takes a file."""
    with open("probe", "w") as file:
        file.write("x")
    os.unlink("probe")
    return (
        not os.path.exists("/proc/self") and not os.access("/", os.W_OK) and bool(os.statvfs("/").f_flag & os.ST_RDONLY)
    )


def _landlock(version: int) -> str:
    if not version:
        return "this kernel has no Landlock (Linux 5.13 and later), or it is switched off"
    for path in ("/proc/self/status", "/etc/passwd", "/sys/kernel"):
        try:
            os.close(os.open(path, os.O_RDONLY))
            return f"{path} can be opened"
        except OSError:
            pass
    return ""


def _system_calls() -> bool:
    refusals = 0
    for attempt in (lambda: os.fork() or os._exit(0), socket.socket, lambda: os.kill(os.getppid() or 2, 0)):
        try:
            attempt()
        except PermissionError:
            refusals += 1
    return refusals == 3


def _limits() -> bool:
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        mmap.mmap(-1, space + mmap.PAGESIZE).close()
    except (OSError, ValueError):
        return resource.getrlimit(resource.RLIMIT_FSIZE)[0] < 1 << 40
    return False
