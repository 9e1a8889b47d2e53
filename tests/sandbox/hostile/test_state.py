"""The names of earlier blocks: kept, made again, or told to be lost."""

import random
import time

import pytest

from tests.sandbox.hostile.attempts import ENDED, assert_goes_on, lives, value

LOSSES = {
    "timeout": ("while True: pass", 0.2),
    "crash": ("import ctypes\nctypes.string_at(0)", 5),
    "exit": ("import os\nos._exit(3)", 5),
    "output": ("import os\nwhile True: os.write(1, bytes(65536))", 5),
    "forgery": ("import os, time\nos.write(3, b'junk')\ntime.sleep(9)", 5),
}


def lose(session, loss: str = "exit") -> None:
    """Lose the session's process."""
    code, timeout = LOSSES[loss]
    told = session.run(code, timeout=timeout)
    assert told.status == {"forgery": "crash"}.get(loss, loss), told


def test_names_live_from_block_to_block(session):
    session.run("x = [1]")
    session.run("x.append(2)")
    told = session.run("x")
    assert (told.result, told.state) == ("[1, 2]", "live")


@pytest.mark.parametrize("loss", LOSSES)
def test_names_come_back_after_a_loss_by(session, loss):
    session.run("x = [1]")
    session.run("x.append(2)")
    lose(session, loss)
    told = session.run("x")
    assert (told.status, told.result, told.state) == ("ok", "[1, 2]", "replayed")
    assert session.run("x").state == "live"


def test_names_live_on_after_a_memory_error(session):
    session.run("x = object()\nbefore = id(x)")
    assert session.run("bytearray(600 << 20)").status == "memory"
    told = session.run("id(x) == before")
    assert (told.result, told.state) == ("True", "live")


@pytest.mark.parametrize("code", ["raise SystemExit", "import sys\nsys.exit('text')", "exit()", "quit(3)"])
def test_names_live_on_after_leaving_with(session, code):
    session.run("x = object()\nbefore = id(x)")
    told = session.run(code)
    assert (told.status, told.result) == ("exit", None)
    told = session.run("id(x) == before")
    assert (told.result, told.state) == ("True", "live")


def test_names_live_on_after_an_error(session):
    session.run("x = object()\nbefore = id(x)")
    assert session.run("y = 5\n1 / 0\nz = 6").status == "error"
    told = session.run("id(x) == before, y, 'z' in globals()")
    assert (value(told), told.state) == ((True, 5, False), "live")


@pytest.mark.parametrize(
    "raised", ["KeyboardInterrupt", "GeneratorExit", "BaseException", "StopIteration", "asyncio.CancelledError"]
)
def test_an_unusual_exception_is_an_error_like_any(session, raised):
    told = session.run(f"import asyncio\nraise {raised}")
    assert told.status == "error" and raised.rpartition(".")[2] in told.stderr.splitlines()[-1]
    assert lives(session)


def test_an_exception_that_cannot_be_shown_is_an_error(session):
    told = session.run("class E(Exception):\n    def __str__(self): raise E\n    __repr__ = __str__\nraise E")
    assert told.status == "error" and told.stderr
    assert lives(session)


def test_an_exception_that_leaves_while_it_is_shown_is_an_ending(session):
    told = session.run("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E")
    assert told.status in ("error", "exit")
    assert lives(session)


def test_an_exception_that_causes_itself_is_an_error(session):
    told = session.run("a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a")
    assert told.status == "error" and "ValueError: a" in told.stderr
    assert lives(session)


def test_the_block_that_was_lost_is_not_run_again(session):
    session.run("x = 1")
    session.run("x = 2\nimport os\nos._exit(0)")
    told = session.run("x")
    assert (told.result, told.state) == ("1", "replayed")


def test_blocks_that_failed_are_run_again_for_the_names_they_made(session):
    session.run("x = 1\n1 / 0")
    session.run("y = 2\nraise SystemExit")
    lose(session)
    told = session.run("x, y")
    assert (value(told), told.state) == ((1, 2), "replayed")


def test_a_loss_in_the_first_block_is_told_and_the_session_goes_on(session):
    lose(session, "timeout")
    told = session.run("x = 1\nx")
    assert (told.status, told.result, told.state) == ("ok", "1", "replayed")


def test_two_losses_one_after_the_other_are_one_replay_each(session):
    session.run("x = 1")
    lose(session)
    told = session.run(LOSSES["crash"][0])
    assert (told.status, told.state) == ("crash", "replayed")
    told = session.run("x")
    assert (told.result, told.state) == ("1", "replayed")
    assert lives(session)


def test_fifty_blocks_come_back_in_their_order(session):
    session.run("x = 1")
    for number in range(2, 51):
        session.run(f"x = x * {number} % 1000003")
    before = session.run("x").result
    lose(session)
    told = session.run("x")
    assert (told.result, told.state) == (before, "replayed")


def test_output_of_replayed_blocks_is_not_told_again(session):
    session.run("import sys\nprint('first')\nprint('second', file=sys.stderr)\n'third'")
    session.run("1 / 0")
    lose(session)
    told = session.run("print('now')\n5")
    assert (told.stdout, told.stderr, told.result, told.state) == ("now\n", "", "5", "replayed")


def test_output_of_the_lost_block_is_told_with_that_block_alone(session):
    told = session.run("import os\nprint('lost', flush=True)\nos._exit(0)")
    assert (told.status, told.stdout) == ("exit", "lost\n")
    assert session.run("1").stdout == ""


def test_what_cannot_be_copied_comes_back_too(session):
    session.run(
        "numbers = iter(range(100))\nnext(numbers), next(numbers)\nf = lambda: next(numbers)\nclass A: pass\na = A()"
    )
    session.run("f()\ndef g():\n    yield from 'abc'\nh = g()\nnext(h)\nfile = open('t', 'w+')\n_ = file.write('text')")
    lose(session)
    told = session.run("f(), next(h), type(a).__name__, file.tell()")
    assert (value(told), told.state) == ((3, "b", "A", 4), "replayed")


def test_imports_settings_and_folders_come_back_too(session):
    session.run(
        "import os, sys, decimal\nos.makedirs('d')\nos.chdir('d')\nos.environ['X'] = 'y'\ndecimal.getcontext().prec = 5"
    )
    lose(session)
    told = session.run("os.path.basename(os.getcwd()), os.environ['X'], str(decimal.Decimal(1) / 3)")
    assert (value(told), told.state) == (("d", "y", "0.33333"), "replayed")


def test_threads_of_earlier_blocks_come_back_too(session):
    session.run("import threading, queue\nasked, told = queue.Queue(), queue.Queue()")
    session.run(
        "def serve():\n    while True: told.put(asked.get() * 2)\nthreading.Thread(target=serve, daemon=True).start()"
    )
    lose(session)
    result = session.run("asked.put(21)\ntold.get(timeout=2)")
    assert (result.result, result.state) == ("42", "replayed")


def test_names_that_were_deleted_stay_deleted(session):
    session.run("x = 1")
    session.run("del x")
    lose(session)
    assert session.run("'x' in globals()").result == "False"


def test_random_numbers_are_the_same_after_a_replay(session):
    before = value(session.run("import random\nnumbers = [random.random() for _ in range(3)]\nnumbers"))
    lose(session)
    told = session.run("numbers")
    assert (value(told), told.state) == (before, "replayed")


def test_random_numbers_go_on_after_a_replay_as_if_nothing_had_been_lost(session):
    session.run("import random\nrandom.seed(5)\na = random.random()")
    session.run("for _ in range(7): _ = random.random()\nimport os\nos._exit(0)")
    first = value(session.run("random.random()"))
    lose(session)
    numbers = random.Random(5)
    expected = [numbers.random(), numbers.random(), numbers.random()]
    assert first == expected[1]
    assert value(session.run("a, random.random()")) == (expected[0], expected[2])


def test_random_numbers_of_numpy_are_the_same_after_a_replay(session):
    before = session.run("import numpy\nx = numpy.random.rand(3)\nx.tolist()", timeout=20)
    lose(session)
    told = session.run("x.tolist()", timeout=20)
    assert (value(told), told.state) == (value(before), "replayed")


def test_random_numbers_of_numpy_are_others_in_another_session(session, neighbour):
    code = "import numpy\nnumpy.random.rand(2).tolist()"
    assert value(session.run(code, timeout=20)) != value(neighbour.run(code, timeout=20))


def test_a_shuffle_and_a_sample_are_the_same_after_a_replay(session):
    before = value(session.run("from random import *\nx = list(range(50))\nshuffle(x)\ny = sample(x, 5)\nx, y"))
    lose(session)
    told = session.run("x, y")
    assert (value(told), told.state) == (before, "replayed")


def test_sets_of_text_keep_their_order(session, neighbour):
    code = "list({'alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta'}), hash('x')"
    before = value(session.run(code))
    lose(session)
    assert value(session.run(code)) == before == value(neighbour.run(code))


def test_names_are_told_to_be_lost_when_a_replay_ends_otherwise(session):
    until = time.time() + 0.4
    assert session.run(f"import time\nassert time.time() < {until}\nx = 1").status == "ok"
    time.sleep(0.45)
    lose(session)
    told = session.run("x = 5\nx")
    assert (told.status, told.state, told.result) == ("lost", "lost", None)
    assert told.stderr
    assert session.run("6 * 7").status == "lost"


def test_names_are_told_to_be_lost_when_a_replay_is_lost_itself(session):
    until = time.time() + 0.4
    assert session.run(f"import os, time\nif time.time() > {until}: os._exit(0)\nx = 1").status == "ok"
    time.sleep(0.45)
    lose(session)
    told = session.run("x")
    assert (told.status, told.state, told.result) == ("lost", "lost", None)


@pytest.mark.slow
def test_names_are_told_to_be_lost_when_a_replay_takes_far_longer_than_before(session):
    until = time.time() + 0.4
    assert session.run(f"import time\nif time.time() > {until}: time.sleep(60)\nx = 1").status == "ok"
    time.sleep(0.45)
    lose(session)
    began = time.monotonic()
    told = session.run("x")
    assert (told.status, told.state) == ("lost", "lost") and time.monotonic() - began < 10


def test_a_lost_session_harms_no_other(sandbox, session):
    until = time.time() + 0.3
    session.run(f"import time\nassert time.time() < {until}")
    time.sleep(0.35)
    lose(session)
    assert session.run("1").status == "lost"
    with sandbox.session() as other:
        told = other.run("6 * 7")
        assert (told.status, told.result, told.state) == ("ok", "42", "live")


def test_a_session_that_was_closed_is_lost_and_runs_nothing(sandbox):
    with sandbox.session() as session:
        session.run("x = 1")
    told = session.run("x")
    assert (told.status, told.result) == ("lost", None)


def test_names_that_were_cleared_do_not_keep_the_session_from_working(session):
    session.run("globals().clear()")
    assert_goes_on(session, state="live")


def test_modules_that_were_cleared_harm_only_their_own_session(session):
    session.run("import sys\nsys.modules.clear()")
    assert session.run("6 * 7", timeout=5).status in ENDED


def test_builtins_that_were_cleared_harm_only_their_own_session(session):
    session.run("import builtins\nvars(builtins).clear()")
    assert session.run("6 * 7", timeout=5).status in ENDED


def test_a_trace_that_a_block_left_does_not_fail_the_next(session):
    session.run("import sys\ndef trace(*_): raise ValueError('trace')\nsys.settrace(trace)")
    told = session.run("6 * 7", timeout=5)
    assert told.status in ENDED and told.result in ("42", None)


def test_a_timer_that_a_block_left_harms_only_its_own_session(session):
    session.run("import signal, time\n_ = signal.setitimer(signal.ITIMER_REAL, 0.05)")
    time.sleep(0.1)
    assert session.run("time.sleep(0.1)", timeout=5).status in ("ok", "crash", "error")
    assert session.run("6 * 7", timeout=5).status in ENDED


def test_a_process_that_kills_itself_is_told(session, mode):
    """The first process of a namespace does not hear signals of its own that it has no handler for."""
    session.run("x = 1")
    told = session.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n'here'", timeout=5)
    if mode in ("namespaces", "apptainer"):
        assert (told.status, told.result) == ("ok", "'here'")
    else:
        assert told.status in ("crash", "memory")
    assert session.run("x").result == "1"


@pytest.mark.parametrize("code", ["import os\nos.abort()", "import ctypes\nctypes.string_at(0)"])
def test_a_process_that_breaks_down_is_a_crash(session, code):
    session.run("x = 1")
    told = session.run(code, timeout=5)
    assert (told.status, told.result) == ("crash", None)
    told = session.run("x")
    assert (told.result, told.state) == ("1", "replayed")


@pytest.mark.parametrize("number", [0, 1, 255])
def test_leaving_at_once_is_an_exit_whatever_the_number(session, number):
    told = session.run(f"import os\nos._exit({number})")
    assert (told.status, told.result) == ("exit", None)
    assert_goes_on(session)


def test_leaving_in_a_thread_ends_that_thread_alone(session):
    code = "import sys, threading\nt = threading.Thread(target=sys.exit)\nt.start()\nt.join()\n'after'"
    assert value(session.run(code)) == "after"
    assert lives(session)


def test_what_a_block_took_is_not_counted_for_the_next(session):
    session.run("sum(range(20_000_000))", timeout=60)
    told = session.run("1")
    assert told.cpu_s < 0.25 and told.wall_s < 3
