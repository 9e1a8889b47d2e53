"""What stands around sessions: a tree of read-only folders in namespaces of its own, and each session's own namespaces, or where
those are not to be had, Landlock. The system call filter, limits and lost privileges come with both.

All of it is done by the process that it binds, between fork and the first line of a session, as an ordinary user.
"""

import errno
import os
import resource
import shutil
import signal
from dataclasses import dataclass

from mathmill.sandbox import kernel, landlock, seccomp

NOBODY = 65534
OWN_FOLDER = "/session"
"""A session's own files, where it has a file system of its own; /tmp leads there too."""
SYSTEM_FOLDERS = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/share/zoneinfo",
    "/etc/alternatives",
)
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
MAX_FILES = 4096
MAX_THREADS = 64
NPROC_COUNTS_BY_NAMESPACE = (5, 14)
"""From this Linux on RLIMIT_NPROC counts a user namespace's own processes; before, all of the user's."""


@dataclass(frozen=True)
class Limits:
    """What one session may use."""

    memory_mb: int = 2048
    """Address space beyond what every session begins with."""
    file_mb: int = 16
    disk_mb: int = 64
    """All its files together, where it has a file system of its own."""
    open_files: int = 64
    cpu_s: int = 3600
    begins_with_bytes: int = 0
    """Address space of a session before its first block."""


def visible(libraries: list[str]) -> list[str]:
    """Folders that a session may read, no one inside another: the system's libraries and Python's."""
    wanted = sorted({*SYSTEM_FOLDERS, *libraries}, key=lambda path: path.count("/"))
    kept: list[str] = []
    for path in filter(os.path.isdir, wanted):
        if not any(path == other or path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


def linux_version() -> tuple[int, int]:
    """The kernel's version, as (5, 14)."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(letter for letter in minor if letter.isdigit()) or 0)


def enter_namespaces(libraries: list[str], proc: int) -> None:
    """Put this process into user, mount, net, ipc and uts namespaces of its own, with a root that holds libraries and four
    devices, all read-only. Its next child is process 1 of a pid namespace. Root becomes nobody first. OSError says which
    step the kernel refused. `proc`: a descriptor of /proc, which is not there afterwards.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _is_real_root():
        kernel.unshare(kernel.NEW_MOUNTS, "a mount namespace")
        _build_root(libraries)
        uid = gid = NOBODY
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
        _unshare_all(proc, uid, gid)
    else:
        _unshare_all(proc, uid, gid)
        _build_root(libraries)


def _is_real_root() -> bool:
    """Whether root is root outside too; in a user namespace it is an ordinary user already."""
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _unshare_all(proc: int, uid: int, gid: int) -> None:
    kernel.unshare(
        kernel.NEW_USERS | kernel.NEW_MOUNTS | kernel.NEW_PIDS | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS,
        "user, mount, pid, net, ipc and uts namespaces",
    )
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        except OSError as problem:
            raise OSError(problem.errno, f"{name}: {problem.strerror}") from None
        finally:
            os.close(descriptor)


def _build_root(libraries: list[str]) -> None:
    """A new root: its own tmpfs with bind mounts of what is visible. The old one is let go."""
    folders = visible(libraries)
    kernel.mount(None, "/", None, kernel.PRIVATE | kernel.RECURSIVE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NO_SUID | kernel.NO_DEV, "size=1m,mode=755")
    os.mkdir("/tmp/.old")
    kernel.pivot_root("/tmp", "/tmp/.old")
    os.chdir("/")
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        kernel.mount(_in_old(folder), folder, None, kernel.BIND | kernel.RECURSIVE)
        kernel.make_read_only(folder, kernel.NO_SUID | kernel.NO_DEV)
    os.makedirs("/etc", exist_ok=True)
    for path in SYSTEM_FILES:
        if os.path.exists(_in_old(path)):
            shutil.copyfile(_in_old(path), path)
    with open("/etc/passwd", "w") as file:
        file.write(f"nobody:x:{NOBODY}:{NOBODY}:nobody:{OWN_FOLDER}:/none\n")
    os.mkdir("/dev")
    for device in DEVICES:
        open(device, "x").close()
        kernel.mount("/.old" + device, device, None, kernel.BIND)
    os.mkdir(OWN_FOLDER)
    if not os.path.exists("/tmp"):  # unless libraries lie below it
        os.symlink(OWN_FOLDER, "/tmp")
    kernel.unmount("/.old")
    os.rmdir("/.old")
    kernel.mount(None, "/", None, kernel.REMOUNT | kernel.BIND | kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEV)


def _in_old(path: str) -> str:
    """The path where it really is, seen through the old root, whatever symbolic links lead there."""
    parts, where = path.strip("/").split("/"), "/.old"
    for _ in range(1000):
        if not parts:
            return where
        step = f"{where}/{parts.pop(0)}"
        if os.path.islink(step):
            target = os.readlink(step)
            parts = [part for part in target.split("/") if part not in ("", ".")] + parts
            where = "/.old" if target.startswith("/") else where
        elif step.endswith("/.."):
            where = where.rpartition("/")[0] or "/.old"
        else:
            where = step
    raise OSError(errno.ELOOP, f"{path}: too many symbolic links")


@dataclass(frozen=True)
class Binding:
    """All that binds a session, computed before the fork."""

    limits: list[tuple[int, tuple[int, int]]]
    tmpfs: str
    filter: kernel.Filter | None
    """None where it has to name the process's own number, which is known only then."""

    @staticmethod
    def of(limits: Limits, own_namespaces: bool) -> "Binding":
        """For sessions in namespaces of their own, where each is process 1, or for others."""
        return Binding(
            limits=_rlimits(limits, own_namespaces),
            tmpfs=f"size={limits.disk_mb}m,nr_inodes={MAX_FILES},mode=700",
            filter=kernel.Filter(seccomp.program_for(1, own_files=True)) if own_namespaces else None,
        )


def _rlimits(limits: Limits, own_namespaces: bool) -> list[tuple[int, tuple[int, int]]]:
    wanted = [
        (resource.RLIMIT_AS, limits.begins_with_bytes + (limits.memory_mb << 20)),
        (resource.RLIMIT_FSIZE, limits.file_mb << 20),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ]
    if own_namespaces and linux_version() >= NPROC_COUNTS_BY_NAMESPACE:
        wanted.append((resource.RLIMIT_NPROC, MAX_THREADS))
    pairs = []
    for kind, limit in wanted:
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        last = limit + 5 if kind == resource.RLIMIT_CPU else limit  # a signal, then the end
        pairs.append((kind, (limit, last if hard == resource.RLIM_INFINITY else min(last, hard))))
    return pairs


def bind_in_namespaces(binding: Binding) -> None:
    """In a fork of the process in the walls, born in a pid namespace of its own: own mount, net and user namespaces, a private
    folder, no identity."""
    kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_NET, "a session's mount and net namespaces")
    kernel.mount("tmpfs", OWN_FOLDER, "tmpfs", kernel.NO_SUID | kernel.NO_DEV | kernel.NO_EXEC, binding.tmpfs)
    os.chdir(OWN_FOLDER)
    kernel.unshare(kernel.NEW_USERS, "a session's user namespace")
    _bind(binding)


def bind_by_landlock(binding: Binding, folder: str, readable: list[int], version: int, insist: bool) -> None:
    """Where no namespaces are to be had: this process sees the files beneath `readable` and has `folder` for its own.

    `version`: Landlock's, 0 without; `insist`: raise OSError where there is no system call filter.
    """
    os.chdir(folder)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if version:
        own, null = os.open(folder, os.O_PATH | os.O_DIRECTORY), os.open("/dev/null", os.O_PATH)
        landlock.restrict(readable, [own, null], version)
    try:
        _bind(binding)
    except OSError:
        if insist:
            raise


def _bind(binding: Binding) -> None:
    """Limits, privileges and system calls: the same in all modes."""
    for kind, pair in binding.limits:
        resource.setrlimit(kind, pair)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(0o077)
    (binding.filter or kernel.Filter(seccomp.program_for(os.getpid(), own_files=False))).load()
