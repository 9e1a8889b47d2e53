"""The kernel's surface: calls that no block needs, made as a program in C would make them.

A call is made with arguments that do no harm where it is let through and for which the kernel itself would answer
otherwise (a bad pointer: EFAULT, no such process: ESRCH, a bad descriptor: EBADF), so that a refusal is the filter's.
"""

import platform

import pytest

from tests.sandbox.hostile.attempts import (
    NO_PID,
    NO_POINTER,
    REFUSED,
    UNREACHABLE,
    X86_64,
    assert_refused,
    call,
    errno_of,
    lives,
    value,
)

only_x86_64 = pytest.mark.skipif(not X86_64, reason="this call is known to x86_64 only")
NO_DESCRIPTOR = -1
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000


def test_another_process_cannot_be_traced(session):
    assert_refused(session, "ptrace", 16, NO_PID, 0, 0)


def test_the_memory_of_a_process_cannot_be_read(session):
    assert_refused(session, "process_vm_readv", "os.getpid()", 0, 0, 0, 0, 0)


def test_the_memory_of_a_process_cannot_be_written(session):
    assert_refused(session, "process_vm_writev", "os.getpid()", 0, 0, 0, 0, 0)


def test_processes_cannot_be_compared(session):
    assert_refused(session, "kcmp", "os.getpid()", "os.getpid()", 0, 0, 0)


def test_the_memory_of_another_process_cannot_be_advised(session):
    assert_refused(session, "process_madvise", NO_DESCRIPTOR, 0, 0, 0, 0)


def test_a_dying_process_cannot_be_hurried(session):
    assert_refused(session, "process_mrelease", NO_DESCRIPTOR, 0)


def test_a_descriptor_of_another_process_cannot_be_taken(session):
    assert_refused(session, "pidfd_getfd", NO_DESCRIPTOR, 0, 0)


def test_pages_of_another_process_cannot_be_moved(session):
    assert_refused(session, "migrate_pages", NO_PID, 0, 0, 0)


def test_nothing_can_be_mounted(session):
    assert_refused(session, "mount", NO_POINTER, NO_POINTER, NO_POINTER, 0, 0)


def test_nothing_can_be_unmounted(session):
    assert_refused(session, "umount2", NO_POINTER, 0x80000000)


def test_nothing_can_be_mounted_by_the_new_calls(session):
    assert_refused(session, "fsopen", NO_POINTER, 0xFFFF)
    assert_refused(session, "open_tree", NO_DESCRIPTOR, NO_POINTER, 0xFFFFFFF)
    assert_refused(session, "move_mount", NO_DESCRIPTOR, NO_POINTER, NO_DESCRIPTOR, NO_POINTER, 0xFFFFFFF)
    assert_refused(session, "mount_setattr", NO_DESCRIPTOR, NO_POINTER, 0xFFFFFFF, 0, 0)


def test_the_root_cannot_be_changed(session):
    assert_refused(session, "chroot", NO_POINTER)


def test_the_root_cannot_be_exchanged(session):
    assert_refused(session, "pivot_root", NO_POINTER, NO_POINTER)


@pytest.mark.parametrize(
    "namespace", [CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET]
)
def test_no_new_namespace_can_be_had(session, namespace):
    assert_refused(session, "unshare", namespace)


def test_no_namespace_can_be_entered(session):
    assert_refused(session, "setns", NO_DESCRIPTOR, 0)


def test_no_program_can_be_given_to_the_kernel(session):
    assert_refused(session, "bpf", 999, NO_POINTER, 8)


def test_nothing_can_be_measured_in_the_kernel(session):
    assert_refused(session, "perf_event_open", NO_POINTER, 0, -1, -1, 0)


def test_no_ring_of_requests_can_be_set_up(session):
    """io_uring opens files and sockets past any filter."""
    assert_refused(session, "io_uring_setup", 1, NO_POINTER)


def test_no_ring_of_requests_can_be_used(session):
    assert_refused(session, "io_uring_enter", NO_DESCRIPTOR, 0, 0, 0, 0, 0)
    assert_refused(session, "io_uring_register", NO_DESCRIPTOR, 0, 0, 0)


def test_page_faults_cannot_be_handled(session):
    """userfaultfd holds the kernel still in the middle of a copy."""
    assert_refused(session, "userfaultfd", 0x7F000000)


def test_no_key_can_be_kept(session):
    assert_refused(session, "add_key", NO_POINTER, NO_POINTER, 0, 0, 0)


def test_no_key_can_be_asked_for(session):
    assert_refused(session, "request_key", NO_POINTER, NO_POINTER, NO_POINTER, 0)


def test_no_ring_of_keys_can_be_used(session):
    assert_refused(session, "keyctl", 999, 0, 0, 0, 0)


def test_no_file_can_be_made_in_memory(session):
    assert errno_of(session, "os.memfd_create('x')") in REFUSED
    assert_refused(session, "memfd_create", NO_POINTER, 0xFF0000)


def test_no_secret_memory_can_be_had(session):
    assert_refused(session, "memfd_secret", 0xFF0000)


def test_no_memory_can_be_shared_by_number(session):
    assert_refused(session, "shmget", 0x6D6D6D6D, 4096, 0)


def test_no_messages_can_be_left_by_number(session):
    assert_refused(session, "msgget", 0x6D6D6D6D, 0)


def test_no_semaphores_can_be_had_by_number(session):
    assert_refused(session, "semget", 0x6D6D6D6D, 1, 0)


def test_no_queue_of_messages_can_be_had_by_name(session):
    assert_refused(session, "mq_open", NO_POINTER, 0, 0, 0)


def test_memory_of_multiprocessing_cannot_be_shared(session):
    """The call that SharedMemory begins with; its process that keeps track would be refused anyhow."""
    attempt = "os.close(_posixshmem.shm_open('/hostile', os.O_CREAT | os.O_RDWR, mode=0o600))\n_posixshmem.shm_unlink('/hostile')"
    assert errno_of(session, attempt, before="import _posixshmem") in UNREACHABLE
    assert lives(session)


def test_limits_of_another_process_cannot_be_seen_or_set(session):
    assert_refused(session, "prlimit64", NO_PID, 7, 0, 0)
    told = session.run("import os, resource\nresource.prlimit(os.getppid() or 999999, resource.RLIMIT_NOFILE)")
    assert told.status == "error"


def test_limits_of_the_process_itself_can_be_seen(session):
    assert value(session.run("import resource\nresource.getrlimit(resource.RLIMIT_NOFILE)[0] <= 64")) is True


def test_the_user_cannot_be_changed(session):
    assert_refused(session, "setuid", 0)
    assert errno_of(session, "os.setuid(0)") in (*REFUSED, "EINVAL")


def test_the_group_cannot_be_changed(session):
    assert_refused(session, "setgid", 0)


def test_the_groups_cannot_be_dropped(session):
    assert_refused(session, "setgroups", 0, 0)


def test_no_user_of_the_three_can_be_changed(session):
    """To what it is already, which a kernel lets anybody do."""
    assert_refused(session, "setresuid", -1, -1, -1)
    assert_refused(session, "setreuid", -1, -1)
    assert_refused(session, "setresgid", -1, -1, -1)


def test_the_process_has_no_capability(session):
    code = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
returned = libc.capget(header, held)
'refused' if returned else [int(bits) for bits in held]
"""
    assert value(session.run(code)) in ("refused", [0] * 6)


def test_no_new_privileges_can_come(session):
    returned, error = call(session, "prctl", 39, 0, 0, 0, 0)
    assert returned == 1 or error in REFUSED


def test_the_process_is_filtered(session):
    returned, error = call(session, "prctl", 21, 0, 0, 0, 0)
    assert returned == 2 or error in REFUSED


def test_the_filter_cannot_be_taken_off(session):
    """Mode 0 is none; strict mode would end the process at its next call."""
    returned, error = call(session, "prctl", 22, 0, 0, 0, 0)
    assert returned == -1 and error in (*REFUSED, "EINVAL")
    assert_refused(session, "unshare", CLONE_NEWUSER)


def test_the_personality_cannot_be_changed(session):
    assert_refused(session, "personality", 0xFFFFFFFF)


def test_quotas_cannot_be_changed(session):
    assert_refused(session, "quotactl", 0xFFFFFFFF, NO_POINTER, 0, NO_POINTER)


def test_swap_cannot_be_changed(session):
    assert_refused(session, "swapon", NO_POINTER, 0)
    assert_refused(session, "swapoff", NO_POINTER)


def test_the_machine_cannot_be_restarted(session):
    assert_refused(session, "reboot", 0, 0, 0, 0)


def test_no_other_kernel_can_be_loaded(session):
    assert_refused(session, "kexec_load", 0, 99999, NO_POINTER, 0)
    assert_refused(session, "kexec_file_load", NO_DESCRIPTOR, NO_DESCRIPTOR, 0, 0, 0)


def test_no_module_can_be_loaded(session):
    assert_refused(session, "init_module", NO_POINTER, 10, NO_POINTER)
    assert_refused(session, "finit_module", NO_DESCRIPTOR, NO_POINTER, 0)
    assert_refused(session, "delete_module", NO_POINTER, 0)


def test_the_clock_cannot_be_set(session):
    assert_refused(session, "clock_settime", 0, NO_POINTER)
    assert_refused(session, "settimeofday", NO_POINTER, 0)


def test_the_clock_cannot_be_bent(session):
    assert_refused(session, "adjtimex", NO_POINTER)
    assert_refused(session, "clock_adjtime", 0, NO_POINTER)


def test_the_names_of_the_machine_cannot_be_changed(session):
    assert_refused(session, "sethostname", NO_POINTER, 5)
    assert_refused(session, "setdomainname", NO_POINTER, 5)


def test_the_kernels_log_cannot_be_read(session):
    assert_refused(session, "syslog", 10, 0, 0)


def test_accounting_cannot_be_changed(session):
    assert_refused(session, "acct", NO_POINTER)


def test_files_cannot_be_opened_by_handle(session):
    assert_refused(session, "open_by_handle_at", NO_DESCRIPTOR, NO_POINTER, 0)
    assert_refused(session, "name_to_handle_at", NO_DESCRIPTOR, NO_POINTER, NO_POINTER, NO_POINTER, 0)


def test_file_systems_cannot_be_watched(session):
    assert_refused(session, "fanotify_init", 0x7F000000, 0)


def test_no_real_time_schedule_can_be_had(session):
    """SCHED_FIFO for oneself would leave no processor to anybody."""
    code = "import os\ntry:\n    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n    told = 'had'\n"
    assert value(session.run(code + "except OSError as problem: told = problem.errno\ntold")) in (1, 13, 38)


def test_no_better_priority_can_be_had(session):
    assert errno_of(session, "os.nice(-5)") in REFUSED
    assert errno_of(session, "os.setpriority(os.PRIO_PROCESS, 0, -5)") in REFUSED


def test_no_port_of_the_machine_can_be_reached(session):
    if X86_64:
        assert_refused(session, "iopl", 0)
        assert_refused(session, "ioperm", 0, 1, 0)
    assert errno_of(session, "open('/dev/port', 'rb')") in (*REFUSED, "ENOENT")


@only_x86_64
def test_no_segment_can_be_described(session):
    assert_refused(session, "modify_ldt", 0, 0, 0)


@only_x86_64
def test_calls_by_the_numbers_of_x32_are_refused(session):
    code = "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    code += (
        "[(libc.syscall(ctypes.c_long(0x40000000 | n), 0, 0, 0), ctypes.get_errno()) for n in (39, 41, 57, 59, 102)]"
    )
    told = value(session.run(code))
    assert len(told) == 5 and all(returned == -1 and error in (1, 13, 38) for returned, error in told)
    assert lives(session)


@only_x86_64
def test_calls_by_the_numbers_of_i386_are_refused(session):
    """`mov eax, 20; int 0x80; ret`: getpid of a 32-bit program, whose numbers mean other calls to a careless filter."""
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_ = page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    told = session.run(code)
    if told.status == "ok":
        assert value(told) in (-1, -13, -38)
    else:  # no executable page to be had, or no 32-bit calls in this kernel
        assert (told.status, "PermissionError" in told.stderr) in (("error", True), ("crash", False))


def test_every_unknown_call_is_answered_and_ends_nothing(session):
    code = """
import ctypes
libc, told = ctypes.CDLL(None, use_errno=True), set()
for number in (*range(600, 700), 1023, 4095, 1 << 20, (1 << 31) - 1):
    returned = libc.syscall(ctypes.c_long(number), 0, 0, 0, 0, 0, 0)
    told.add((returned, ctypes.get_errno()))
sorted(told)
"""
    assert all(returned == -1 and error in (1, 13, 38) for returned, error in value(session.run(code)))
    assert lives(session)


def test_the_upper_half_of_a_number_does_not_hide_a_call(session):
    """The kernel looks at the lower half of the register alone, a filter should too."""
    number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
    code = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall.restype = ctypes.c_long\n"
    code += f"libc.syscall(ctypes.c_long({number} | 1 << 32), ctypes.c_long(0x10000000)), ctypes.get_errno()"
    returned, error = value(session.run(code))
    assert returned == -1 and error in (1, 13, 38)


def test_the_upper_half_of_an_argument_does_not_hide_a_process(session):
    """The kernel looks at the lower half of a pid: one with something above it is still another's."""
    assert_refused(session, "kill", f"{NO_PID} | 1 << 32", 0)
    assert_refused(session, "prlimit64", f"{NO_PID} | 1 << 32", 7, 0, 0)


def test_the_upper_half_of_flags_does_not_hide_a_fork(session):
    """CLONE_SIGHAND without CLONE_VM makes nothing anywhere: EINVAL says that the filter let it pass."""
    assert_refused(session, "clone", "0x800 | 0x10000 << 32", 0, 0, 0, 0)
