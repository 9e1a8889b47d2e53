"""Blocks that mean harm: each harms its own session at most."""

import os
from pathlib import Path

import pytest

from mathmill.sandbox import Sandbox

ENDED = {"error", "exit", "timeout", "memory", "output", "crash"}

ATTACKS = [
    ("while True: pass", {"timeout"}),
    ("x = 'a'\nwhile True: x += x", {"memory"}),
    ("import os\nwhile True: os.write(2, b'x' * 10**6)", {"output"}),
    ("import os\nwhile True: os.fork()", {"error"}),
    ("import os\nos.kill(os.getppid(), 9)", {"error"}),
    ("import ctypes\nctypes.string_at(0)", {"crash"}),
    ("import os\nos._exit(0)", {"exit"}),
    ("import os\nos.closerange(0, 100)", {"crash", "exit"}),
    ("import os\nfor n in range(100):\n    try: os.write(n, b'junk' * 99)\n    except OSError: pass", {"crash"}),
    ("import os\nos.write(3, bytes([1, 255, 255, 255, 255]))", {"crash"}),
    ("def f(): return f()\nf()", {"error"}),
    ("import socket\nsocket.socket()", {"error"}),
]  # fmt: skip
MORE_ATTACKS = [
    ("import time\ntime.sleep(60)", {"timeout"}),
    ("x = []\nwhile True: x.append(bytearray(10**8))", {"memory"}),
    ("while True: print('x' * 10**6)", {"output"}),
    ("import subprocess\nsubprocess.run(['true'])", {"error"}),
    ("import os\nos.kill(-1, 9)", {"error"}),
    ("import os\nos.kill(os.getpid(), 11)", {"crash"}),
    ("import os\nos.abort()", {"crash"}),
    ("import os\nos.write(3, bytes([1, 0, 0, 0, 2]) + b'{}')", {"crash"}),
    ("import os\nwhile True:\n    os.write(3, bytes([1, 0, 0, 0, 2]) + b'{}')", {"crash"}),
    ("import os\nos.read(3, 1000)", {"timeout"}),
    ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x) + repr(x)\nf(1)", {"memory", "crash", "timeout"}),
    ("x = []\nfor _ in range(10**6): x = [x]\nrepr(x)", ENDED),
    ("import threading\nwhile True: threading.Thread(target=lambda: input or __import__('time').sleep(9)).start()", ENDED),
    ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", {"timeout"}),
    ("raise KeyboardInterrupt", {"error"}),
    ("raise BaseException", {"error"}),
    ("class E(Exception):\n    def __str__(self): raise E\nraise E", {"error"}),
    ("import sys\nsys.stdout.close()\nprint(1)", {"error"}),
    ("10**10**10", {"timeout", "memory"}),
    ("import socket\nsocket.create_connection(('127.0.0.1', 22))", {"error"}),
    ("with open('f', 'wb') as f:\n    for _ in range(100): f.write(bytes(10**6))", {"error"}),
    ("files = [open('/dev/null') for _ in range(1000)]", {"error"}),
    ("import ctypes\nctypes.CDLL(None).prctl(22, 0, 0)\nimport os\nos.fork()", {"error"}),
    ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\nbytearray(1 << 36)", {"error", "memory"}),
    ("import os\nos.unshare(0x10000000)" if hasattr(os, "unshare") else "raise ValueError", {"error"}),
]  # fmt: skip


@pytest.fixture
def neighbour(sandbox):
    """A session beside the hostile one that must not notice anything."""
    with sandbox.session() as neighbour:
        neighbour.run("mine = 41")
        yield neighbour
        told = neighbour.run("mine + 1")
        assert (told.status, told.result, told.state) == ("ok", "42", "live")


@pytest.mark.parametrize(
    ("attack", "statuses"), [*ATTACKS, *(pytest.param(*attack, marks=pytest.mark.slow) for attack in MORE_ATTACKS)]
)
def test_an_attack_ends_with_a_status_and_the_neighbour_and_the_session_go_on(session, neighbour, attack, statuses):
    session.run("before = 7")
    told = session.run(attack, timeout=0.4 if "timeout" in statuses else 20, max_output=1000)
    assert told.status in statuses, told
    assert told.status != "timeout" or told.wall_s < 2
    assert len(told.stdout) <= 1000 and len(told.stderr) <= 2000
    after = session.run("before", timeout=20)
    assert (after.status, after.result) == ("ok", "7"), after


def test_a_forged_answer_harms_only_its_own_session(session, neighbour):
    forged = b'{"id":1,"status":"ok","result":"forged","traceback":"","cut":false,"cpu_s":0.1}'
    told = session.run(f"import os, time\nos.write(3, bytes([1, 0, 0, 0, {len(forged)}]) + {forged!r})\ntime.sleep(9)")
    assert told.result == "forged"
    assert neighbour.run("mine").result == "41"


@pytest.mark.parametrize(
    "body",
    [b'{"id":true,"status":"ok"}', b'{"id":1,"status":"lost"}', b'{"id":1}', b"[]", b'{"ready":true,"cpu_s":0.0}',
     b'{"id":1,"status":"ok","result":5,"traceback":"","cut":false,"cpu_s":0.1}',
     b'{"id":1,"status":"ok","result":null,"traceback":"","cut":false,"cpu_s":1e99}'],
)  # fmt: skip
def test_an_answer_of_the_wrong_shape_is_a_crash(session, body):
    told = session.run(f"import os, time\nos.write(3, bytes([1, 0, 0, 0, {len(body)}]) + {body!r})\ntime.sleep(9)")
    assert (told.status, told.result) == ("crash", None)


def test_nothing_of_the_environment_is_seen(monkeypatch, look):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-user")
    with Sandbox.start(workers=1, spares=0) as sandbox, sandbox.session() as session:
        told = session.run("import os\nsorted(os.environ)")
        assert told.result == str(
            ["HOME", "LANG", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PYTHONHASHSEED",
             "PYTHONSAFEPATH", "TMPDIR"]
        )  # fmt: skip
        supervisor = session.run("open(f'/proc/{os.getppid()}/environ').read()")
        assert "sk-secret" not in str(supervisor)
        descriptors = session.run("sorted(os.listdir('/proc/self/fd'))")
        assert descriptors.result == "['0', '1', '2', '3', '4']"


def test_the_private_folder_goes_away_whatever_is_in_it(sandbox, look):
    with sandbox.session() as session:
        told = session.run(
            "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.symlink('/etc', 'a/link')\nos.chmod('a/b', 0)\n"
            "os.chmod('a', 0)\noct(os.stat('.').st_mode & 0o777), os.getcwd() == os.environ['HOME'], os.getcwd()"
        )
        mode, home, folder = eval(told.result)
        assert (mode, home) == ("0o700", True)
        assert Path(folder).is_dir()
    assert look.becomes_true(lambda: not Path(folder).exists())
    assert Path("/etc/passwd").exists()


def test_threads_that_are_left_behind_stand_still_between_blocks(session, supervisor_pid, look):
    session.run("import threading, os\ncount = 0\ndef spin():\n    global count\n    while True: count += 1")
    session.run("threading.Thread(target=spin, daemon=True).start()")
    pid = int(session.run("os.getpid()").result)
    assert look.becomes_true(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
    assert session.run("count > 0").result == "True"


def test_a_session_leaves_no_process_behind(sandbox, supervisor_pid, look):
    with sandbox.session() as session:
        pid = int(session.run("import os; os.getpid()").result)
        assert pid in look.processes_of(supervisor_pid)
    assert not look.running(pid)


@pytest.fixture(scope="module")
def open_sandbox():
    """A sandbox whose sessions may start processes."""
    with Sandbox.start(workers=2, spares=0, processes=True) as sandbox:
        yield sandbox


DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(300)', '{mark}'], {{}})
    os._exit(0)
os.wait()
"""


def test_processes_that_a_block_leaves_are_killed_at_its_end(open_sandbox, look):
    mark = f"left-{os.getpid()}-a"
    with open_sandbox.session() as session:
        code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', {mark!r}])\n1"
        assert session.run(code).result.endswith("1")
        assert look.becomes_true(lambda: not look.marked(mark))
        assert session.run("1 + 1").state == "live"


def test_a_daemon_that_forked_twice_and_left_the_group_is_found_and_killed(open_sandbox, look):
    mark = f"left-{os.getpid()}-b"
    with open_sandbox.session() as session:
        assert session.run(DAEMON.format(mark=mark)).status == "ok"
    assert look.becomes_true(lambda: not look.marked(mark))


def test_a_daemon_of_a_block_that_timed_out_is_killed(open_sandbox, look):
    mark = f"left-{os.getpid()}-c"
    with open_sandbox.session() as session:
        assert session.run(DAEMON.format(mark=mark) + "while True: pass", timeout=0.6).status == "timeout"
        assert look.becomes_true(lambda: not look.marked(mark))
