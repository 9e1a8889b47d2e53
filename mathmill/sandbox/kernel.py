"""What the sandbox asks of Linux that Python has no name for: namespaces, mounts, capabilities, prctl. By ctypes."""

import ctypes
import os
import signal
import struct

NEW_MOUNTS, NEW_USERS, NEW_PIDS, NEW_NET, NEW_IPC, NEW_UTS = (
    0x20000, 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000,
)  # fmt: skip
"""linux/sched.h"""
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NO_ATIME, NO_DIRATIME, RELATIVE_ATIME = 1024, 2048, 1 << 21
"""linux/mount.h"""
DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 1, 4, 36, 38, 39
"""linux/prctl.h"""
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR = 442
AT_RECURSIVE = 0x8000
SA_NOCLDSTOP = 1
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: "int | bytes | ctypes.Array[ctypes.c_char] | None") -> int:
    """A system call by its number; OSError that begins with `what` where the kernel refuses."""
    passed = [ctypes.c_ulong(one & (1 << 64) - 1) if isinstance(one, int) else one for one in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *passed), what)


def prctl(option: int, value: "int" = 0) -> int:
    """prctl(2) with one argument; OSError where the kernel refuses."""
    return _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def unshare(flags: int, what: str) -> None:
    """unshare(2): leave the caller's namespaces for new ones."""
    _checked(_libc.unshare(flags), what)


def enter_pid_namespace(descriptor: int) -> None:
    """setns(2): children to come are born in this pid namespace, which is our own or one below."""
    _checked(_libc.setns(descriptor, NEW_PIDS), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    _checked(_libc.mount(words[0], words[1], words[2], flags, words[3]), f"mount {target}")


def unmount(target: str) -> None:
    """umount2(2), all that is mounted there and below, now or when it is no longer used."""
    _checked(_libc.umount2(os.fsencode(target), DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    number = SYS_PIVOT_ROOT[os.uname().machine]
    syscall("pivot_root", number, os.fsencode(new), os.fsencode(old))


def make_read_only(target: str, flags: int) -> None:
    """A bind mount, and what is mounted below it where the kernel can (5.12), becomes read-only with these flags."""
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", READ_ONLY | flags, 0, 0, 0), 32)
    try:
        syscall("mount_setattr", SYS_MOUNT_SETATTR, -100, os.fsencode(target), AT_RECURSIVE, attributes, 32)
    except OSError:
        mount(None, target, None, REMOUNT | BIND | READ_ONLY | flags | _kept_flags(target))


def _kept_flags(target: str) -> int:
    """Flags that a mount has already: those that an ancestor's namespace set may not be dropped."""
    has = os.statvfs(target).f_flag
    kept = has & (READ_ONLY | NO_SUID | NO_DEV | NO_EXEC | NO_ATIME | NO_DIRATIME)
    return kept | (RELATIVE_ATIME if has & 4096 else 0)


def drop_capabilities() -> None:
    """This process has no capability left, in no set."""
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")


def has_capabilities() -> bool:
    """Whether one is left in any set."""
    header = ctypes.create_string_buffer(struct.pack("Ii", CAPABILITY_VERSION_3, 0), 8)
    sets = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, sets), "capget")
    return any(sets.raw)


def hear_only_deaths() -> None:
    """SIGCHLD comes when a child has died, not when it was stopped or goes on (SA_NOCLDSTOP). Once it has a handler."""
    action = ctypes.create_string_buffer(152)  # glibc's struct sigaction: the handler, a mask of 128 bytes, the flags
    _checked(_libc.sigaction(signal.SIGCHLD, None, action), "sigaction")
    flags = struct.unpack_from("i", action, 136)[0]
    struct.pack_into("i", action, 136, flags | SA_NOCLDSTOP)
    _checked(_libc.sigaction(signal.SIGCHLD, action, None), "sigaction")


class Filter:
    """A seccomp filter (struct sock_filter[]), laid out before the fork, since all that a session computes is paid in pages."""

    def __init__(self, program: bytes):
        self._steps = ctypes.create_string_buffer(program, len(program))
        self._sock_fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(self._steps))

    def load(self) -> None:
        """Bind this process, for good. OSError where the kernel has no filters."""
        _checked(_libc.prctl(22, ctypes.c_ulong(2), self._sock_fprog, 0, 0), "a seccomp filter")
