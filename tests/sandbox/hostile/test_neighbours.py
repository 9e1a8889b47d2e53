"""What one session can do to another, and to those that come after it."""

import os
import signal
import socket
import threading
import time

import pytest

from tests.sandbox.hostile.attempts import DONE, REFUSED, UNREACHABLE, errno_of, lives, value

BY_NAMESPACE = ("namespaces", "apptainer")
SOON_S = 5.0


@pytest.fixture
def neighbour_pid(neighbour):
    """The neighbour's own idea of its pid: with namespaces that of everybody (1), otherwise a real one."""
    return value(neighbour.run("import os\nos.getpid()"))


def assert_own_or_refused(session, mode, attempt: str, before: str = "") -> None:
    """Something done to the neighbour's pid: refused; or done to oneself, where the pid means oneself."""
    told = errno_of(session, attempt, before)
    assert told in ((*UNREACHABLE, "ESRCH", DONE) if mode in BY_NAMESPACE else UNREACHABLE), told


def test_names_of_one_session_are_not_seen_by_another(session, neighbour):
    session.run("mine = 'changed'\nother = 1")
    assert neighbour.run("mine").result == "41"
    told = neighbour.run("other")
    assert told.status == "error" and "NameError" in told.stderr


def test_a_module_that_one_session_broke_works_in_another(session, neighbour):
    session.run("import math, json\nmath.sqrt = json.dumps = lambda *_: 'poison'\nmath.pi = 3")
    assert value(neighbour.run("import math, json\nmath.sqrt(4), json.dumps([]), math.pi > 3.14")) == (2.0, "[]", True)


def test_a_library_that_one_session_broke_works_in_a_session_started_later(sandbox, session):
    session.run("import numpy\nnumpy.sum = numpy.linalg.norm = lambda *_: 'poison'\nnumpy.seterr(all='raise')")
    assert session.run("numpy.sum([1])").result == "'poison'"
    with sandbox.session() as later:
        code = (
            "import numpy\nfloat(numpy.sum([1.0, 2.0])), float(numpy.linalg.norm([3.0, 4.0])), numpy.geterr()['under']"
        )
        assert value(later.run(code, timeout=20)) == (3.0, 5.0, "ignore")


def test_builtins_that_one_session_broke_work_in_a_session_started_later(sandbox, session):
    session.run("import builtins\nbuiltins.len = builtins.print = builtins.repr = lambda *_: 'poison'")
    with sandbox.session() as later:
        told = later.run("print(len('abc'))\nrepr(4)")
        assert (told.stdout, told.result) == ("3\n", "'4'")


def test_settings_of_the_process_do_not_reach_another_session(sandbox, session):
    session.run(
        "import os, sys, locale, signal\nos.environ['X'] = '1'\nos.umask(0)\nos.makedirs('d')\nos.chdir('d')\n"
        "sys.setrecursionlimit(200)\nsys.path.insert(0, '/poison')\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
    )
    with sandbox.session() as later:
        code = "import os, sys\nos.environ.get('X'), os.listdir(), sys.getrecursionlimit() > 900, '/poison' in sys.path"
        assert value(later.run(code)) == (None, [], True, False)


def test_memory_of_the_common_start_is_not_shared_for_writing(sandbox, session):
    """Small integers lie in memory that a fork starts from: a session that changes one changes its own copy."""
    code = "import ctypes\nctypes.c_uint32.from_address(id(200) + 24).value = 199\n'changed'"
    assert session.run(code).status in ("ok", "crash", "error")
    with sandbox.session() as later:
        assert value(later.run("int('20') * 10 - 199")) == 1


def test_files_of_one_session_are_not_seen_by_another(session, neighbour):
    session.run("with open('secret', 'w') as file: _ = file.write('secret')")
    assert value(neighbour.run("import os\nos.listdir()")) == ["mine"]


def test_a_file_of_a_neighbour_cannot_be_read_by_its_path(session, neighbour, mode):
    path = value(neighbour.run("import os\nos.path.abspath('mine')"))
    told = errno_of(session, f"open({path!r}).read()")
    assert told == "ENOENT" if mode in BY_NAMESPACE else told in UNREACHABLE


def test_a_file_of_a_neighbour_cannot_be_changed_by_its_path(session, neighbour):
    path = value(neighbour.run("import os\nos.path.abspath('mine')"))
    assert errno_of(session, f"os.truncate({path!r}, 0)") in UNREACHABLE
    assert errno_of(session, f"open({path!r}, 'r+')") in UNREACHABLE
    assert errno_of(session, f"os.unlink({path!r})") in UNREACHABLE
    assert errno_of(session, f"os.chmod({path!r}, 0)") in UNREACHABLE


def test_the_folder_of_a_neighbour_cannot_be_listed_or_closed(session, neighbour, mode):
    folder = value(neighbour.run("import os\nos.getcwd()"))
    if mode in BY_NAMESPACE:
        assert value(session.run(f"import os\nos.listdir({folder!r})")) == []
    else:
        assert errno_of(session, f"os.listdir({folder!r})") in UNREACHABLE
        assert errno_of(session, f"os.chmod({folder!r}, 0)") in UNREACHABLE


def test_the_folders_of_sessions_cannot_be_counted(session, mode):
    told = errno_of(session, "os.listdir('..')")
    if mode in BY_NAMESPACE:
        assert told in (DONE, *UNREACHABLE)
        assert told != DONE or "tmp" in value(session.run("os.listdir('..')"))
    else:
        assert told in UNREACHABLE


def test_a_neighbour_cannot_be_signalled(session, mode, neighbour_pid):
    assert_own_or_refused(session, mode, f"os.kill({neighbour_pid}, 0)")


def test_a_neighbour_cannot_be_woken_between_its_blocks(session, mode, neighbour_pid):
    assert_own_or_refused(session, mode, f"os.kill({neighbour_pid}, 18)")


def test_a_neighbour_cannot_be_signalled_by_way_of_a_descriptor(session, mode, neighbour, neighbour_pid):
    """F_SETOWN and F_SETSIG make the kernel send any signal to any process of the same user when a pipe can be read."""
    neighbour.run("import signal\nseen = []\n_ = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))")
    code = f"""
import fcntl, os, signal, time
_ = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
back, there = os.pipe()
told = []
for command, argument in ((8, {neighbour_pid}), (10, int(signal.SIGUSR1)), (4, os.O_ASYNC | os.O_NONBLOCK)):
    try: told.append(fcntl.fcntl(back, command, argument))
    except OSError as problem: told.append(-problem.errno)
_ = os.write(there, b'x')
time.sleep(0.05)
told
"""
    told = value(session.run(code))
    assert len(told) == 3
    assert value(neighbour.run("import time\ntime.sleep(0.01)\nseen")) == []


def test_a_neighbour_cannot_be_given_a_worse_priority(session, mode, neighbour, neighbour_pid):
    assert_own_or_refused(session, mode, f"os.setpriority(os.PRIO_PROCESS, {neighbour_pid}, 19)")
    assert value(neighbour.run("os.getpriority(os.PRIO_PROCESS, 0) < 19"))


def test_processes_cannot_be_given_a_worse_priority_by_their_user(session, mode):
    """The user asked for is one that nobody is: asked for the own one, a kernel that lets it through slows the whole
    machine's processes of that user down, these tests and their shell with them."""
    told = errno_of(session, "os.setpriority(os.PRIO_USER, 0x7FFFFFF0, 19)")
    # in a pid namespace of its own a session reaches its own process alone
    assert told in ((*REFUSED, "ESRCH", "EINVAL") if mode in BY_NAMESPACE else REFUSED)


def test_a_neighbour_cannot_be_kept_to_one_processor(session, mode, neighbour, neighbour_pid):
    before = value(neighbour.run("len(os.sched_getaffinity(0))"))
    assert_own_or_refused(session, mode, f"os.sched_setaffinity({neighbour_pid}, [min(os.sched_getaffinity(0))])")
    assert value(neighbour.run("len(os.sched_getaffinity(0))")) == before


def test_the_limits_of_a_neighbour_cannot_be_changed(session, mode, neighbour, neighbour_pid):
    attempt = f"resource.prlimit({neighbour_pid}, resource.RLIMIT_NOFILE, (5, 5))"
    assert_own_or_refused(session, mode, attempt, before="import resource")
    assert value(neighbour.run("import resource\nresource.getrlimit(resource.RLIMIT_NOFILE)[0] > 5"))


def test_the_memory_of_a_neighbour_cannot_be_read(session, neighbour, neighbour_pid):
    neighbour.run("secret = bytearray(b'secret of a neighbour')\nimport ctypes")
    address = value(neighbour.run("ctypes.addressof(ctypes.c_char.from_buffer(secret))"))
    code = f"""
import ctypes
libc, read = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(21)
class Part(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
local, remote = Part(ctypes.addressof(read), 21), Part({address}, 21)
got = libc.process_vm_readv({neighbour_pid}, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
got, ctypes.get_errno() > 0, read.raw == b'secret of a neighbour'
"""
    assert value(session.run(code)) == (-1, True, False)


@pytest.mark.parametrize("file", ["mem", "maps", "environ", "cmdline", "status", "cwd", "fd", "oom_score_adj"])
def test_what_the_kernel_tells_of_a_neighbour_cannot_be_opened(session, neighbour_pid, file):
    assert errno_of(session, f"os.open('/proc/{neighbour_pid}/{file}', os.O_RDONLY)") in UNREACHABLE


def test_a_name_without_a_file_cannot_be_listened_at_for_a_neighbour(session, neighbour):
    attempt = "listening = socket.socket(socket.AF_UNIX)\nlistening.bind('\\0hostile')\nlistening.listen()"
    assert errno_of(session, attempt, before="import socket") in REFUSED
    assert errno_of(neighbour, "socket.socket(socket.AF_UNIX).connect('\\0hostile')", before="import socket") in REFUSED


def test_a_name_without_a_file_outside_cannot_be_reached(session):
    name = f"\0mathmill-hostile-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        listening.settimeout(0.05)
        attempt = f"socket.socket(socket.AF_UNIX).connect({name!r})"
        assert errno_of(session, attempt, before="import socket") in REFUSED
        with pytest.raises(TimeoutError):
            listening.accept()


def test_a_lock_on_a_library_is_refused_or_holds_nobody_up(session, neighbour):
    code = "import fcntl, json\nfile = open(json.__file__)\ntry:\n    fcntl.flock(file, fcntl.LOCK_EX)\n    told = 'locked'\n"
    assert value(session.run(code + "except OSError: told = 'refused'\ntold")) in ("locked", "refused")
    told = neighbour.run("import json, importlib\n_ = importlib.reload(json)\njson.dumps([1])", timeout=5)
    assert told.result == "'[1]'" and told.wall_s < SOON_S


def while_running(session, code: str, timeout: float, meanwhile) -> tuple:
    """What the hostile block and something beside it came to."""
    told = []
    running = threading.Thread(target=lambda: told.append(session.run(code, timeout=timeout)))
    running.start()
    time.sleep(0.1)
    try:
        return meanwhile(), told
    finally:
        running.join()


def test_a_neighbour_answers_while_a_session_spins(session, neighbour):
    beside, told = while_running(session, "while True: pass", 0.6, lambda: neighbour.run("mine", timeout=5))
    assert beside.result == "41" and beside.wall_s < SOON_S
    assert told[0].status == "timeout"


def test_a_neighbour_answers_while_a_session_spins_in_many_threads(session, neighbour):
    code = "import threading\ndef spin(): sum(iter(int, 1))\nfor _ in range(30): threading.Thread(target=spin).start()\nspin()"
    beside, told = while_running(session, code, 0.8, lambda: neighbour.run("mine", timeout=5))
    assert beside.result == "41" and beside.wall_s < 2 * SOON_S
    assert told[0].status == "timeout" and told[0].wall_s < 0.8 + SOON_S


def test_a_neighbour_answers_while_a_session_floods(session, neighbour):
    code = "import os\nwhile True: os.write(1, bytes(65536)), os.write(3, b'')"
    beside, told = while_running(session, code, 1, lambda: neighbour.run("mine", timeout=5))
    assert beside.result == "41" and beside.wall_s < SOON_S
    assert told[0].status in ("output", "timeout")


def test_a_neighbour_answers_while_a_session_fills_its_memory(session, neighbour):
    code = "import time\nx = []\ntry:\n    while True: x.append(b'x' * (10 << 20))\nexcept MemoryError: time.sleep(0.3)"
    beside, told = while_running(session, code, 5, lambda: neighbour.run("len(bytearray(200 << 20)) >> 20", timeout=5))
    assert beside.result == "200" and beside.wall_s < SOON_S
    assert told[0].status == "ok"


def test_blocks_that_find_no_free_place_wait_and_are_run(sandbox, session, neighbour):
    """Two blocks run at a time here. While both places are taken a third waits, and its own time does not run."""
    with sandbox.session() as third:
        third.run("x = 3")
        second = threading.Thread(target=lambda: neighbour.run("import time\ntime.sleep(0.4)", timeout=5))
        second.start()
        waited, told = while_running(session, "while True: pass", 0.6, lambda: third.run("x", timeout=0.4))
        second.join()
    assert (waited.status, waited.result) == ("ok", "3")
    assert told[0].status == "timeout"


def test_many_hostile_sessions_at_once_all_end_and_a_neighbour_goes_on(sandbox, neighbour):
    attacks = ["while True: pass", "bytearray(600 << 20)", "import os\nos.abort()", "import os\nos._exit(1)",
               "import os\nos.write(3, b'junk')\nwhile True: pass",
               "import os\nwhile True: os.write(1, bytes(65536))"]  # fmt: skip
    told = {}

    def attack(code: str) -> None:
        with sandbox.session() as session:
            told[code] = session.run(code, timeout=0.4 if code == attacks[0] else 5).status

    running = [threading.Thread(target=attack, args=(code,)) for code in attacks]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert told.pop(attacks[3]) in ("exit", "crash")  # on a busy machine its end may be seen before its exit code
    assert [told[code] for code in attacks if code in told] == ["timeout", "memory", "crash", "crash", "output"]
    assert lives(neighbour)


def test_the_random_numbers_of_a_neighbour_are_others(session, neighbour):
    code = "import random\n[random.random() for _ in range(2)]"
    assert value(session.run(code)) != value(neighbour.run(code))


def test_random_numbers_drawn_by_one_session_do_not_move_those_of_another(session, neighbour):
    before = value(neighbour.run("import random\nstate = random.getstate()\nhash(state)"))
    session.run("import random\nfor _ in range(1000): _ = random.random()\nrandom.seed(5)")
    assert value(neighbour.run("hash(random.getstate())")) == before


def test_the_processes_of_tests_themselves_cannot_be_signalled(session):
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(1))
    try:
        assert errno_of(session, f"os.kill({os.getpid()}, {int(signal.SIGUSR2)})") in REFUSED
        time.sleep(0.02)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == []
