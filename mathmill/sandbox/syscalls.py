"""What a session may not ask of the kernel: a seccomp filter, assembled here for x86_64 and aarch64.

Refused are new processes (threads are allowed), signals and limits for others, sockets, tracing, and the ways around
these. Numbers: the kernel's tables arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import os
import platform
import struct

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE = 1, 22, 38, 36, 4
SECCOMP_MODE_FILTER = 2
CLONE_THREAD = 0x10000
X32 = 0x40000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CREATES = {"x86_64": (57, 58), "aarch64": ()}  # fork, vfork
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
SIGNALS = {"x86_64": (62, 234), "aarch64": (129, 131)}  # kill, tgkill
OTHER_SIGNALS = {
    "x86_64": (200, 129, 297, 424),
    "aarch64": (130, 138, 240, 424),
}  # tkill, *sigqueueinfo, pidfd_send_signal
PRLIMIT = {"x86_64": 302, "aarch64": 261}
# socket, ptrace, process_vm_readv and _writev, mount, unshare, setns, bpf, perf_event_open, userfaultfd, add_key,
# request_key, keyctl; the same everywhere: io_uring_setup, pidfd_open, pidfd_getfd
REFUSED = {
    "x86_64": (41, 101, 310, 311, 165, 272, 308, 321, 298, 323, 248, 249, 250, 425, 434, 438),
    "aarch64": (198, 117, 270, 271, 40, 97, 268, 280, 241, 282, 217, 218, 219, 425, 434, 438),
}

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument; OSError where the kernel refuses."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def filter_program(machine: str, pid: int, processes: bool) -> bytes:
    """The filter for the process `pid`; with `processes` it may start others and signal them."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    def refuse(number: int, error: int = errno.EPERM) -> bytes:
        return step(EQUAL, number, 0, 1) + step(RETURN, ERRNO | error)

    def only_if(number: int, test: int, *values: int) -> bytes:
        tests = b"".join(step(test, value, 0, 1) + step(RETURN, ALLOW) for value in values)
        return (
            step(EQUAL, number, 0, 2 + 2 * len(values))
            + step(LOAD, FIRST_ARGUMENT)
            + tests
            + step(RETURN, ERRNO | errno.EPERM)
        )

    program = step(LOAD, ARCHITECTURE) + step(EQUAL, AUDIT[machine], 1, 0) + step(RETURN, ERRNO | errno.EPERM)
    program += step(LOAD, NUMBER)
    if machine == "x86_64":
        program += step(AT_LEAST, X32, 0, 1) + step(RETURN, ERRNO | errno.EPERM)
    program += b"".join(refuse(number) for number in REFUSED[machine])
    program += only_if(PRLIMIT[machine], EQUAL, 0, pid)
    if not processes:
        program += b"".join(refuse(number) for number in CREATES[machine] + OTHER_SIGNALS[machine])
        program += refuse(CLONE3, errno.ENOSYS)  # libc then uses clone, whose flags a filter can read
        program += only_if(CLONE[machine], ANY_BIT, CLONE_THREAD)
        program += b"".join(only_if(number, EQUAL, pid) for number in SIGNALS[machine])
    return program + step(RETURN, ALLOW)


def install_filter(processes: bool) -> None:
    """Bind this process, for good and across exec. OSError where kernel or machine has no filters."""
    machine = platform.machine()
    if machine not in AUDIT:
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    program = filter_program(machine, os.getpid(), processes)
    steps = ctypes.create_string_buffer(program, len(program))
    sock_fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), sock_fprog, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")


def filter_holds() -> bool:
    """Whether a process that installs the filter really cannot fork here."""
    pid = os.fork()
    if pid == 0:
        try:
            install_filter(processes=False)
            os.fork()
        except PermissionError:
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
