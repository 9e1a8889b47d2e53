"""What a session may ask of the kernel: a list of system calls and nothing else, as a seccomp filter for x86_64 and aarch64.

Allowed is what Python, NumPy, SciPy, SymPy and pandas need to compute and to write files of their own. There are no new
processes (threads are allowed), no programs, no sockets, no signals to others. Numbers: the kernel's tables
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; a test compares them with libseccomp's.
"""

import errno
import os
import struct
from functools import cache

ALLOWED = """
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66,
sched_yield 24 124, mremap 25 216, msync 26 227, madvise 28 233, dup 32 23, nanosleep 35 101, getitimer 36 102,
setitimer 38 103, getpid 39 172, exit 60 93, wait4 61 260, uname 63 160, flock 73 32, fsync 74 82,
fdatasync 75 83, truncate 76 45, ftruncate 77 46, getcwd 79 17, chdir 80 49, fchdir 81 50, fchmod 91 52, umask 95 166,
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176,
geteuid 107 175, getegid 108 177, getppid 110 173, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgid 121 155, capget 125 90, getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, statfs 137 43, fstatfs 138 44, getpriority 140 141, setrlimit 160 164, gettid 186 178, futex 202 98,
sched_getaffinity 204 123, getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223,
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, waitid 247 95, openat 257 56,
mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78,
fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99, get_robust_list 274 100,
utimensat 280 88, epoll_pwait 281 22, fallocate 285 47, eventfd2 290 19, epoll_create1 291 20, epoll_ctl 233 21,
dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, getcpu 309 168, renameat2 316 276, getrandom 318 278,
membarrier 324 283, copy_file_range 326 285, statx 332 291, rseq 334 293, close_range 436 436, faccessat2 439 439,
fchmodat2 452 452
"""
ALLOWED_ON_X86_64 = """
open 2, stat 4, lstat 6, poll 7, access 21, pipe 22, select 23, dup2 33, pause 34, alarm 37, getdents 78, rename 82,
mkdir 83, rmdir 84, creat 85, link 86, unlink 87, symlink 88, readlink 89, chmod 90, getpgrp 111, utime 132, arch_prctl 158,
time 201, epoll_create 213, epoll_wait 232, utimes 235, eventfd 284
"""
REFUSED_AS_UNSUPPORTED = """
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11,
llistxattr 195 12, flistxattr 196 13, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
"""
"""Extended attributes: shutil goes on without them when told so, and fails on any other error."""
BY_PATH = ("chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "utimensat", "truncate")
"""What changes files and is beyond Landlock (truncate before its version 3): refused where that holds a session's files."""
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
FCNTL = {"x86_64": 72, "aarch64": 25}
IOCTL = {"x86_64": 16, "aarch64": 29}
PRCTL = {"x86_64": 157, "aarch64": 167}
PRLIMIT = {"x86_64": 302, "aarch64": 261}
KILL, TGKILL = {"x86_64": 62, "aarch64": 129}, {"x86_64": 234, "aarch64": 131}

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
NEWEST = 425
"""Calls from this number on, where they are not listed, are refused as unknown, so that a libc falls back on older ones."""
CLONE_THREAD = 0x10000
TERMINAL_AND_DESCRIPTOR = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
HARMLESS_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ; not F_SETOWN, which signals others."""
HARMLESS_PRCTL = (15, 16, 39, 0x53564D41)
"""prctl: PR_SET_NAME, PR_GET_NAME, PR_GET_NO_NEW_PRIVS, PR_SET_VMA (names of memory, glibc)."""
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24
OWN_PID = 0x7E57FACE
"""Stands in a prepared filter for the process's own number."""


def table(text: str, column: int) -> dict[str, int]:
    """Names and numbers of one machine."""
    return {words[0]: int(words[column]) for words in map(str.split, text.split(","))}


def allowed(machine: str) -> dict[str, int]:
    """The system calls that are allowed whatever their arguments, with their numbers."""
    if machine == "aarch64":
        return table(ALLOWED, 2)
    return table(ALLOWED, 1) | table(ALLOWED_ON_X86_64, 1)


@cache
def prepared(machine: str, own_files: bool) -> bytes:
    """The filter's program, whose process number is still open. KeyError for a machine that has none.

    `own_files`: a session sees no file that is another's. The program halves the numbers until an answer is left: the kernel
    runs it for every number when it is loaded.
    """
    answers = _answers(machine, own_files)
    starts = sorted({0, NEWEST, X32, *answers, *(number + 1 for number in answers)})
    spans: list[tuple[int, bytes]] = []
    for start in starts:
        answer = answers.get(start) or _return(
            ERRNO | (errno.EPERM if start < NEWEST or start >= X32 else errno.ENOSYS)
        )
        if not spans or spans[-1][1] != answer:
            spans.append((start, answer))
    wrong_machine = _step(LOAD, ARCHITECTURE) + _step(EQUAL, AUDIT[machine], 1, 0) + _return(ERRNO | errno.EPERM)
    return wrong_machine + _step(LOAD, NUMBER) + _halved(spans)


def _answers(machine: str, own_files: bool) -> dict[int, bytes]:
    """What is answered to each system call that is not simply refused."""
    answers = {number: _return(ALLOW) for name, number in allowed(machine).items() if own_files or name not in BY_PATH}
    for number in table(REFUSED_AS_UNSUPPORTED, 1 if machine == "x86_64" else 2).values():
        answers[number] = _return(ERRNO | errno.EOPNOTSUPP)
    answers[CLONE3] = _return(ERRNO | errno.ENOSYS)  # libc then uses clone, whose flags a filter can read
    answers[CLONE[machine]] = _only_if(FIRST_ARGUMENT, ANY_BIT, CLONE_THREAD)
    answers[FCNTL[machine]] = _only_if(SECOND_ARGUMENT, EQUAL, *HARMLESS_FCNTL)
    answers[IOCTL[machine]] = _only_if(SECOND_ARGUMENT, EQUAL, *TERMINAL_AND_DESCRIPTOR)
    answers[PRCTL[machine]] = _only_if(FIRST_ARGUMENT, EQUAL, *HARMLESS_PRCTL)
    answers[PRLIMIT[machine]] = _only_if(FIRST_ARGUMENT, EQUAL, 0, OWN_PID)
    answers[KILL[machine]] = answers[TGKILL[machine]] = _only_if(FIRST_ARGUMENT, EQUAL, OWN_PID)
    return answers


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter"""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _return(answer: int) -> bytes:
    return _step(RETURN, answer)


def _only_if(argument: int, test: int, *values: int) -> bytes:
    """Allowed where the argument passes the test with one of the values."""
    tests = b"".join(_step(test, value, 0, 1) + _return(ALLOW) for value in values)
    return _step(LOAD, argument) + tests + _return(ERRNO | errno.EPERM)


def _halved(spans: list[tuple[int, bytes]]) -> bytes:
    """The answer of the span that the number is in; a span goes from its first number to the next one's."""
    if len(spans) == 1:
        return spans[0][1]
    middle = len(spans) // 2
    low, high = _halved(spans[:middle]), _halved(spans[middle:])
    return _step(AT_LEAST, spans[middle][0], len(low) // 8, 0) + low + high


def program_for(pid: int, own_files: bool) -> bytes:
    """The filter for this machine's process `pid`, ready to be loaded. OSError on a machine that has none."""
    machine = os.uname().machine
    if machine not in AUDIT:
        raise OSError(errno.ENOSYS, f"no system call filter for {machine}")
    return prepared(machine, own_files).replace(struct.pack("=I", OWN_PID), struct.pack("=I", pid))
