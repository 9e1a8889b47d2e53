"""Blocks that want other processes, or other processes' attention."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mathmill.sandbox.options import SandboxOptions
from tests.sandbox.hostile.attempts import (
    DONE,
    NO_PID,
    NO_POINTER,
    REFUSED,
    UNREACHABLE,
    X86_64,
    assert_refused,
    call,
    errno_of,
    lives,
    pid_of,
    value,
)

CLONE_VM, CLONE_SIGHAND, CLONE_THREAD, CLONE_NEWUSER = 0x100, 0x800, 0x10000, 0x10000000
SPARES = SandboxOptions().spares
PROGRAM = """
with open('program', 'w', opener=lambda path, flags: os.open(path, flags, 0o700)) as file:
    _ = file.write('#!/bin/true\\n')
"""
only_x86_64 = pytest.mark.skipif(not X86_64, reason="this call is known to x86_64 only")


def test_a_fork_starts_no_process(session):
    assert errno_of(session, "if os.fork() == 0: os._exit(0)") in REFUSED
    assert lives(session)


def test_a_fork_bomb_starts_no_process(session):
    code = """
import os
answers = set()
for _ in range(1000):
    try:
        if os.fork() == 0: os._exit(0)
        answers.add('started')
    except OSError as problem:
        answers.add(problem.errno)
sorted(answers)
"""
    assert value(session.run(code)) in ([1], [13], [38])
    assert lives(session)


@only_x86_64
def test_the_system_call_fork_starts_no_process(session):
    code = "libc.syscall(long(57)) or os._exit(0)"
    told = session.run(
        f"import ctypes, errno, os\nlibc, long = ctypes.CDLL(None, use_errno=True), ctypes.c_long\nmade = {code}\n"
        "made, errno.errorcode.get(ctypes.get_errno())"
    )
    made, error = value(told)
    assert made == -1 and error in REFUSED


@only_x86_64
def test_the_system_call_vfork_starts_no_process(session):
    code = "import ctypes, errno, os\nlibc = ctypes.CDLL(None, use_errno=True)\nmade = libc.vfork()\n"
    made, error = value(session.run(code + "if made == 0: os._exit(0)\nmade, errno.errorcode.get(ctypes.get_errno())"))
    assert made == -1 and error in REFUSED


def test_clone_without_a_thread_starts_no_process(session):
    """CLONE_SIGHAND without CLONE_VM makes no process anywhere: EINVAL says that the filter let it pass."""
    assert_refused(session, "clone", CLONE_SIGHAND, 0, 0, 0, 0)


def test_clone_with_a_new_namespace_starts_no_process(session):
    assert_refused(session, "clone", CLONE_SIGHAND | CLONE_NEWUSER, 0, 0, 0, 0)


def test_clone3_is_not_there(session):
    """Its flags lie in memory, where no filter can read them; libraries fall back on clone."""
    assert call(session, "clone3", 0, 0) == (-1, "ENOSYS")
    assert lives(session)


def test_a_thread_cannot_be_made_in_a_new_namespace(session):
    flags = CLONE_THREAD | CLONE_SIGHAND | CLONE_VM | CLONE_NEWUSER
    returned, error = call(session, "clone", flags, 0, 0, 0, 0)
    assert returned == -1 and error in (*REFUSED, "EINVAL")
    assert lives(session)


def test_exec_of_a_program_is_refused_and_the_process_lives_on(session):
    assert errno_of(session, "os.execv('/bin/true', ['true'])") in UNREACHABLE
    assert lives(session)


def test_exec_of_python_itself_is_refused_and_the_process_lives_on(session):
    attempt = "os.execv(sys.executable or '/usr/bin/python3', ['python', '-c', ''])"
    assert errno_of(session, attempt, before="import sys") in UNREACHABLE
    assert lives(session)


def test_exec_of_a_program_that_the_block_wrote_is_refused(session):
    """A file of the session's own is there for sure: only a refusal of exec keeps it from running."""
    before = PROGRAM
    assert errno_of(session, "os.execv('./program', ['program'])", before=before) in REFUSED
    assert lives(session)


def test_exec_of_a_descriptor_is_refused(session):
    before = PROGRAM + "descriptor = os.open('program', os.O_RDONLY)\nos.set_inheritable(descriptor, True)"
    assert errno_of(session, "os.execve(descriptor, ['program'], {})", before=before) in REFUSED
    assert lives(session)


def test_the_system_call_execve_is_refused(session):
    assert_refused(session, "execve", NO_POINTER, 0, 0)


def test_the_system_call_execveat_is_refused(session):
    assert_refused(session, "execveat", -1, NO_POINTER, 0, 0, 0)


def test_posix_spawn_starts_no_process(session):
    attempt = "os.posix_spawn('./program', ['program'], {})"
    before = PROGRAM
    assert errno_of(session, attempt, before=before) in REFUSED
    assert lives(session)


def test_subprocess_starts_no_process(session):
    before = "import subprocess\n" + PROGRAM
    assert errno_of(session, "subprocess.run(['./program'])", before=before) in REFUSED
    assert lives(session)


def test_system_starts_no_shell(session):
    told = session.run("import os\nos.system('echo started')")
    assert told.status in ("ok", "error") and told.result != "0" and "started" not in told.stdout
    assert lives(session)


def test_popen_starts_no_shell(session):
    assert errno_of(session, "os.popen('echo started').read()") in REFUSED
    assert lives(session)


def test_a_process_of_multiprocessing_does_not_start(session):
    told = session.run(
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print, args=('started',)).start()"
    )
    assert told.status == "error" and told.stdout == ""
    assert "PermissionError" in told.stderr or "OSError" in told.stderr
    assert lives(session)


def test_a_pool_of_processes_does_not_start(session):
    told = session.run(
        "from concurrent.futures import ProcessPoolExecutor\nwith ProcessPoolExecutor(1) as pool:\n"
        "    told = pool.submit(abs, -1).result(timeout=2)\ntold",
        timeout=5,
    )
    assert told.status == "error" and told.result is None, told
    assert lives(session)


def test_a_pseudoterminal_with_a_process_does_not_start(session):
    assert errno_of(session, "if os.forkpty()[0] == 0: os._exit(0)") in UNREACHABLE
    assert lives(session)


def test_a_thread_works(session):
    code = "import threading\nx = []\nt = threading.Thread(target=x.append, args=(5,))\nt.start()\nt.join()\nx"
    assert value(session.run(code)) == [5]


def test_threads_come_to_a_bounded_number(session):
    code = """
import _thread, time
_ = _thread.stack_size(64 << 10)
threads, told = 0, 'all started'
try:
    while threads < 4000:
        _ = _thread.start_new_thread(time.sleep, (60,))
        threads += 1
except (RuntimeError, MemoryError):
    told = 'refused'
told, threads
"""
    told, threads = value(session.run(code, timeout=20))
    assert told == "refused" and 4 <= threads < 4000


def test_the_parent_cannot_be_signalled(session):
    """Signal 0 only asks whether it could be. In a pid namespace of its own the parent is 0, which means the own group."""
    assert errno_of(session, "os.kill(os.getppid(), 0)") in REFUSED
    assert lives(session)


def test_nobody_at_all_can_be_signalled(session):
    assert errno_of(session, "os.kill(-1, 0)") in REFUSED
    assert lives(session)


def test_the_own_group_cannot_be_signalled(session):
    assert errno_of(session, "os.kill(0, 0)") in REFUSED
    assert errno_of(session, "os.killpg(os.getpgrp(), 0)") in (*REFUSED, "ESRCH")
    assert lives(session)


def test_the_sandbox_cannot_be_signalled(session, supervisor_pid):
    assert errno_of(session, f"os.kill({supervisor_pid}, 0)") in REFUSED
    assert errno_of(session, f"os.kill({os.getpid()}, 0)") in REFUSED


def test_a_process_that_is_not_there_is_refused_as_others_are(session):
    """ESRCH would tell which processes there are."""
    assert_refused(session, "kill", NO_PID, 0)


def test_a_thread_of_another_process_cannot_be_signalled(session):
    assert_refused(session, "tgkill", NO_PID, NO_PID, 0)


def test_the_old_call_to_signal_a_thread_is_refused(session):
    assert_refused(session, "tkill", NO_PID, 0)


def test_a_signal_with_a_value_is_refused(session):
    assert_refused(session, "rt_sigqueueinfo", NO_PID, 0, NO_POINTER)


def test_a_signal_with_a_value_for_a_thread_is_refused(session):
    assert_refused(session, "rt_tgsigqueueinfo", NO_PID, NO_PID, 0, NO_POINTER)


def test_a_process_cannot_be_opened(session):
    assert_refused(session, "pidfd_open", "os.getpid()", 0)


def test_an_opened_process_cannot_be_signalled(session):
    assert_refused(session, "pidfd_send_signal", -1, 0, 0, 0)


def test_a_process_can_signal_itself(session):
    code = "import os, signal\nseen = []\nsignal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))\n"
    assert value(session.run(code + "os.kill(os.getpid(), signal.SIGUSR1)\nseen == [signal.SIGUSR1]")) is True


def test_a_process_waits_for_nobody(session):
    assert errno_of(session, "os.waitpid(-1, os.WNOHANG)") in ("ECHILD", *REFUSED)


def test_the_process_is_the_first_of_its_own_where_there_are_namespaces(session, mode):
    pid, parent = value(session.run("import os\nos.getpid(), os.getppid()"))
    if mode in ("namespaces", "apptainer"):
        assert (pid, parent) == (1, 0)
    else:
        assert pid > 1 and parent > 0


def test_the_user_is_nobody_of_the_machine(session, mode):
    user = value(session.run("import os\nos.getuid()"))
    if mode in ("namespaces", "apptainer"):
        assert user == 65534
    else:
        assert user != 0


def test_no_process_is_left_when_a_session_ends(sandbox, supervisor_pid, look):
    """Sixteen sessions at once, with threads, are more processes than the sandbox keeps ready."""
    assert look.becomes_true(lambda: sandbox.stats()["spares"] >= SPARES)
    before = len(look.processes_of(supervisor_pid))
    sessions = [sandbox.session() for _ in range(16)]
    for session in sessions:
        session.run("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()")
    assert len(look.processes_of(supervisor_pid)) >= before + 12
    for session in sessions:
        session.close()
    assert look.becomes_true(lambda: len(look.processes_of(supervisor_pid)) <= before + 2)


def test_attempts_from_a_thread_are_refused_too(session):
    code = """
import os, threading
answers = []
def attempt():
    try:
        if os.fork() == 0: os._exit(0)
        answers.append('started')
    except OSError as problem: answers.append(problem.errno)
thread = threading.Thread(target=attempt)
thread.start()
thread.join()
answers
"""
    assert value(session.run(code)) in ([1], [13], [38])


def test_attempts_after_a_replay_are_refused_too(session):
    session.run("x = 1")
    session.run("import os\nos._exit(0)")
    assert session.run("x").state == "replayed"
    assert errno_of(session, "if os.fork() == 0: os._exit(0)") in REFUSED
    assert errno_of(session, "os.kill(-1, 0)") in REFUSED
    assert DONE not in REFUSED


@pytest.mark.slow
def test_a_session_that_resists_does_not_outlive_its_sandbox(own_sandbox, look):
    """The sandbox is killed while a session spins that ignores signals, left its group and cleared its death signal."""
    pid, session, told = pid_of(own_sandbox), own_sandbox.session(), []
    code = """
import ctypes, os, signal, threading
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
_ = ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
try: os.setsid()
except OSError: pass
def spin():
    while True: pass
threading.Thread(target=spin).start()
spin()
"""
    assert lives(session)
    running = threading.Thread(target=lambda: told.append(session.run(code, timeout=20)))
    running.start()
    time.sleep(0.5)
    processes = look.processes_of(pid)
    ours = [process for process in processes if "python" in Path(f"/proc/{process}/comm").read_text()]
    try:
        assert ours
        os.kill(pid, signal.SIGKILL)
        running.join(timeout=5)
        assert told and told[0].status == "lost"
        assert look.becomes_true(lambda: not any(map(look.running, ours)), within_s=3)
    finally:  # a squashfuse of Apptainer's outlives an Apptainer that was killed so
        for process in processes:
            if look.running(process):
                os.kill(process, signal.SIGKILL)
