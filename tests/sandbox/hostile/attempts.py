"""What hostile tests share: attempts inside a session that tell what they came to, and the kernel's numbers."""

import ast
import platform
import textwrap
from typing import Any

X86_64 = platform.machine() == "x86_64"
ENDED = ("ok", "error", "exit", "timeout", "memory", "output", "crash")
"""How a block of a working sandbox may end; `lost` is none of these."""
REFUSED = ("EPERM", "EACCES", "ENOSYS")
"""What a filter, Landlock or a missing privilege answers."""
UNREACHABLE = (*REFUSED, "ENOENT", "EROFS")
"""What a file elsewhere answers: refused, not there, or not to be written."""
DONE = "none"
"""Told by an attempt that met no error."""
NO_POINTER = 1
"""An address that is never mapped: the kernel answers EFAULT where nothing refuses the call before."""
NO_PID = 0x7FFFFFFF
"""A process that never exists: ESRCH where nothing refuses the call before."""

# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h: (x86_64, aarch64)
NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "capget": (125, 90),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112), "clone": (56, 220), "clone3": (435, 435),
    "connect": (42, 203), "delete_module": (176, 106), "execve": (59, 221), "execveat": (322, 281),
    "fanotify_init": (300, 262), "finit_module": (313, 273), "fsopen": (430, 430), "init_module": (175, 105),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioprio_set": (251, 30),
    "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129),
    "listen": (50, 201), "memfd_create": (319, 279), "memfd_secret": (447, 447), "migrate_pages": (256, 238),
    "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429), "mq_open": (240, 180), "msgget": (68, 186),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pivot_root": (155, 41), "prctl": (157, 167), "prlimit64": (302, 261),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60), "reboot": (169, 142),
    "request_key": (249, 218), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "sched_setscheduler": (144, 119), "semget": (64, 190), "sendto": (44, 206), "setdomainname": (171, 162),
    "setgid": (106, 144), "setgroups": (116, 159), "sethostname": (170, 161), "setns": (308, 268), "setpriority": (141, 140),
    "setresgid": (119, 149), "setresuid": (117, 147), "setreuid": (113, 145), "settimeofday": (164, 170),
    "setuid": (105, 146), "shmget": (29, 194), "socket": (41, 198), "socketpair": (53, 199), "swapoff": (168, 225),
    "swapon": (167, 224), "syslog": (103, 116), "tgkill": (234, 131), "tkill": (200, 130), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282),
    # x86_64 only
    "fork": (57, None), "ioperm": (173, None), "iopl": (172, None), "modify_ldt": (154, None), "vfork": (58, None),
}  # fmt: skip


def pid_of(sandbox: Any) -> int:
    """The process outside that all of the sandbox's processes descend from."""
    known = getattr(sandbox, "pid_outside", None)
    return known if known is not None else sandbox._inner._started.process.pid


def value(told: Any) -> Any:
    """The value of a block's last expression, which must have come about."""
    assert told.status == "ok", told
    return ast.literal_eval(told.result)


def errno_of(session: Any, attempt: str, before: str = "") -> str:
    """The name of the error number that statements fail with inside, or DONE. OSErrors only: others fail the test."""
    code = f"import errno, os\n{textwrap.dedent(before)}\ntry:\n{textwrap.indent(textwrap.dedent(attempt), '    ')}\n"
    code += "except OSError as problem:\n    told = errno.errorcode.get(problem.errno, repr(problem))\n"
    return value(session.run(code + f"else:\n    told = {DONE!r}\ntold"))


def call(session: Any, name: str, *arguments: int | bytes | str) -> tuple[int, str]:
    """What a system call returns inside, and the name of its error number. A `str` argument is an expression."""
    number = NUMBERS[name][0 if X86_64 else 1]
    passed = ", ".join(
        f"long({argument})" if not isinstance(argument, bytes) else repr(argument) for argument in arguments
    )
    code = f"""
        import ctypes, errno, os
        libc, long = ctypes.CDLL(None, use_errno=True), ctypes.c_long
        libc.syscall.restype = long
        ctypes.set_errno(0)
        returned = libc.syscall(long({number}), {passed})
        returned, errno.errorcode.get(ctypes.get_errno(), {DONE!r})
    """
    return value(session.run(textwrap.dedent(code)))


def lives(session: Any) -> bool:
    """Whether the session goes on with the process that it had."""
    told = session.run("1 + 1")
    return (told.status, told.result, told.state) == ("ok", "2", "live")


def assert_refused(session: Any, name: str, *arguments: int | bytes | str) -> None:
    """The call was made, was refused, and did not end the process.

    Arguments are such that a kernel which lets the call through would answer otherwise, and do no harm where it does.
    """
    assert lives(session)
    returned, error = call(session, name, *arguments)
    assert returned == -1 and error in REFUSED, (name, returned, error)
    assert lives(session)


def assert_goes_on(session: Any, state: str = "replayed") -> None:
    """The session answers its next block rightly, with the names it had."""
    told = session.run("sum(range(10))", timeout=20)
    assert (told.status, told.result, told.state) == ("ok", "45", state), told
