"""Blocks that want more time than they have, or lie about it."""

import threading
import time

import pytest

from tests.sandbox.hostile.attempts import assert_goes_on, value

LIMIT_S = 0.3
LATE_S = 3.0
"""More than a loaded machine needs to kill a process."""


def assert_times_out(session, code: str, before: str = "") -> None:
    """The block ends at its limit as a timeout, and the names before it come back."""
    session.run("kept = 7\n" + before)
    began = time.monotonic()
    told = session.run(code, timeout=LIMIT_S)
    waited = time.monotonic() - began
    assert told.status == "timeout", told
    assert LIMIT_S <= told.wall_s < LIMIT_S + LATE_S and waited < LIMIT_S + 2 * LATE_S
    assert told.result is None
    after = session.run("kept")
    assert (after.status, after.result, after.state) == ("ok", "7", "replayed")


def test_an_endless_loop_ends_at_its_time(session):
    assert_times_out(session, "while True: pass")


def test_sleep_ends_at_its_time(session):
    assert_times_out(session, "import time\ntime.sleep(60)")


def test_a_block_that_ignores_every_signal_ends_at_its_time(session):
    assert_times_out(
        session,
        """
import signal
ignored = 0
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
        ignored += 1
    except (OSError, ValueError):
        pass
assert ignored > 20
while True: pass
""",
    )


def test_a_block_that_blocks_every_signal_ends_at_its_time(session):
    assert_times_out(session, "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass")


def test_a_block_that_catches_every_exception_ends_at_its_time(session):
    assert_times_out(
        session,
        """
def forever():
    while True:
        try:
            while True: pass
        except BaseException:
            pass
        finally:
            forever()
forever()
""",
    )


def test_a_computation_in_c_that_never_returns_ends_at_its_time(session):
    assert_times_out(session, "sum(iter(int, 1))")


def test_a_catastrophic_regular_expression_ends_at_its_time(session):
    assert_times_out(session, "import re\nre.match('(a+)+$', 'a' * 60 + 'b')")


def test_a_huge_power_ends_at_its_time(session):
    assert_times_out(session, "len(str(7 ** (7 ** 10)))")


def test_a_thread_that_never_ends_and_is_waited_for_ends_at_its_time(session):
    assert_times_out(
        session,
        "import threading\ndef spin():\n    while True: pass\nt = threading.Thread(target=spin)\nt.start()\nt.join()",
    )


def test_a_deadlock_ends_at_its_time(session):
    assert_times_out(session, "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()")


def test_a_process_that_stops_itself_ends_at_its_time(session):
    assert_times_out(
        session,
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(60)",
    )


def test_a_timer_that_interrupts_all_the_time_does_not_hold_the_deadline_up(session):
    assert_times_out(
        session,
        """
import signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while True: pass
""",
    )


def test_a_block_that_left_its_process_group_ends_at_its_time(session):
    assert_times_out(
        session,
        """
import os
for leave in (os.setsid, lambda: os.setpgid(0, 0)):
    try: leave()
    except OSError: pass
while True: pass
""",
    )


def test_reading_what_never_comes_ends_at_its_time(session):
    assert_times_out(session, "import os\nos.read(os.pipe()[0], 1)")


def test_reading_the_channel_ends_at_its_time(session):
    assert_times_out(session, "import os\nos.read(3, 1000)")


def test_a_display_that_never_ends_ends_at_its_time(session):
    assert_times_out(session, "class A:\n    def __repr__(self):\n        while True: pass\nA()")


def test_an_attribute_that_a_display_asks_for_ends_at_its_time(session):
    assert_times_out(
        session,
        "class M(type):\n    def __getattribute__(cls, name):\n        while True: pass\n"
        "class A(metaclass=M):\n    def __repr__(self): return type(self).name\nA()",
    )


def test_an_error_whose_text_never_ends_ends_at_its_time(session):
    assert_times_out(session, "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E")


def test_a_destructor_that_never_ends_ends_at_its_time(session):
    assert_times_out(session, "del a", before="class A:\n    def __del__(self):\n        while True: pass\na = A()")


def test_a_stream_whose_flush_never_ends_ends_at_its_time(session):
    assert_times_out(
        session,
        """
import sys
class Slow:
    def write(self, text): pass
    def flush(self):
        while True: pass
sys.stdout = sys.stderr = Slow()
print('x', flush=True)
""",
    )


def test_source_that_takes_long_to_compile_ends_at_its_time(session):
    session.run("kept = 7")
    told = session.run("x = 1\n" * 400_000, timeout=LIMIT_S)
    assert told.status == "timeout" and told.wall_s < LIMIT_S + LATE_S, told
    assert session.run("kept").result == "7"


def test_a_trace_function_that_never_returns_ends_at_its_time(session):
    assert_times_out(
        session,
        "import sys\ndef trace(*_):\n    while True: pass\ndef f(): pass\nsys.settrace(trace)\nf()",
    )


def test_clocks_that_a_block_replaced_do_not_move_the_deadline(session):
    assert_times_out(
        session,
        """
import time
for name in ('time', 'monotonic', 'perf_counter', 'process_time', 'time_ns', 'monotonic_ns', 'perf_counter_ns'):
    setattr(time, name, lambda: 0)
while True: pass
""",
    )


def test_the_wall_time_that_is_told_is_measured_outside(session):
    told = session.run(
        "import time\nsleep = time.sleep\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\nsleep(0.2)"
    )
    assert told.status == "ok" and 0.2 <= told.wall_s < 0.2 + LATE_S


def test_a_handler_at_exit_that_never_ends_does_not_hold_the_session_up(session):
    told = session.run("import atexit, time\natexit.register(time.sleep, 60)\nraise SystemExit", timeout=5)
    assert told.status == "exit" and told.wall_s < LATE_S
    assert_goes_on(session, state="live")


def test_every_timeout_of_several_comes_in_time(session):
    session.run("kept = 7")
    for _ in range(3):
        told = session.run("while True: pass", timeout=0.15)
        assert told.status == "timeout" and told.wall_s < 0.15 + LATE_S
    assert session.run("kept").result == "7"


def test_the_time_before_a_timeout_is_not_taken_from_the_next_block(session):
    assert session.run("while True: pass", timeout=0.2).status == "timeout"
    assert value(session.run("import time\ntime.sleep(0.3)\n'there'", timeout=5)) == "there"


def test_the_processor_time_of_a_killed_block_is_told(session):
    told = session.run("while True: pass", timeout=0.5)
    assert told.status == "timeout" and 0.005 < told.cpu_s < 1.0


def test_a_sleeping_block_is_told_to_have_used_no_processor_time(session):
    session.run("import time")
    told = session.run("time.sleep(0.3)")
    assert told.status == "ok" and told.cpu_s < 0.25 and told.wall_s >= 0.3


def test_a_thread_left_behind_gets_no_time_between_blocks(session):
    session.run(
        "import threading, time\ncount = 0\ndef spin():\n    global count\n    while True: count += 1\n"
        "threading.Thread(target=spin, daemon=True).start()\ntime.sleep(0.05)"
    )
    before = session.run("time.thread_time(), time.process_time(), count").result
    time.sleep(0.5)
    after = session.run("time.thread_time(), time.process_time(), count").result
    used = eval(after)[1] - eval(before)[1]
    assert eval(after)[2] > 0 and used < 0.3, used


@pytest.mark.parametrize("left", ["daemon=True", "daemon=False"])
def test_a_session_with_a_thread_left_behind_closes_at_once(sandbox, left):
    with sandbox.session() as session:
        code = f"import threading, time\nthreading.Thread(target=time.sleep, args=(60,), {left}).start()"
        assert session.run(code).status == "ok"
        began = time.monotonic()
    assert time.monotonic() - began < LATE_S


def test_a_session_that_is_closed_in_the_middle_of_a_block_ends_the_block(sandbox):
    session, told = sandbox.session(), []
    session.run("1")
    running = threading.Thread(target=lambda: told.append(session.run("while True: pass", timeout=30)))
    running.start()
    time.sleep(0.2)
    began = time.monotonic()
    session.close()
    running.join(timeout=5)
    assert time.monotonic() - began < 2 * LATE_S
    assert told and told[0].status == "lost"
