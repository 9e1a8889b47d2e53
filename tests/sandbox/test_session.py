"""Blocks, their results, and the names they leave to the next."""

import threading
import time

import pytest

from mathmill.sandbox import Sandbox
from mathmill.sandbox.blocks import parts_of


def test_the_last_expression_is_the_result_and_names_live_on(session):
    assert session.run("x = 2\nx + 1").result == "3"
    result = session.run("print('seen')\nx * 10")
    assert (result.status, result.stdout, result.result, result.state) == ("ok", "seen\n", "20", "live")


@pytest.mark.parametrize(
    ("code", "result"),
    [("x = 1", None), ("None", None), ("1;", None), ("'a'", "'a'"), ("1\n2", "2"), ("", None), ("# only this", None),
     ("for i in range(3): i", None), ("print(1)", None), ("[i for i in 'ab']", "['a', 'b']"), ("'é' * 2", "'éé'"),
     ("(1,\n 2)", "(1, 2)"), ("def f():\n    return 4\nf()", "4"), ("'\\ud800'", "'\\ud800'"), ("__name__", "'__main__'")],
)  # fmt: skip
def test_what_is_shown_is_what_python_would_show(session, code, result):
    told = session.run(code)
    assert (told.status, told.result) == ("ok", result)


def test_an_error_ends_stderr_with_the_traceback_of_the_block_alone(session):
    told = session.run("import sys\nprint('before', file=sys.stderr)\ndef f():\n    return 1 / 0\nf()")
    assert told.status == "error"
    assert told.stderr.startswith("before\nTraceback (most recent call last):\n")
    assert told.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "return 1 / 0" in told.stderr and "blocks.py" not in told.stderr


def test_a_syntax_error_can_be_told_from_others(session):
    told = session.run("def f(:")
    assert told.status == "error" and told.stderr.splitlines()[-1].startswith("SyntaxError: ")
    assert "blocks.py" not in told.stderr
    assert session.run("1").status == "ok"


def test_names_made_before_an_error_stay(session):
    session.run("a = 1\n1 / 0")
    assert session.run("a").result == "1"


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "exit()", "quit(1)", "raise SystemExit"])
def test_leaving_is_its_own_status_and_the_names_stay(session, code):
    session.run("kept = 5")
    assert session.run(code).status == "exit"
    told = session.run("kept")
    assert (told.result, told.state) == ("5", "live")


def test_there_is_no_input(session):
    assert session.run("input()").stderr.endswith("EOFError: EOF when reading a line\n")


def test_stdout_and_stderr_are_apart_also_below_python(session):
    told = session.run(
        "import os, sys\nos.write(1, b'one\\n'); os.write(2, b'two\\n'); print('three', file=sys.stderr)"
    )
    assert (told.stdout, told.stderr) == ("one\n", "two\nthree\n")


def test_text_longer_than_the_limit_is_cut_and_told(session):
    told = session.run("print('ä' * 1000)\n'b' * 1000", max_output=10)
    assert (told.stdout, told.result, told.truncated) == ("ä" * 10, "'bbbbbbbbb", True)
    assert not session.run("print('c' * 9)", max_output=10).truncated
    assert session.run("1 / 0", max_output=10).truncated


def test_a_timeout_comes_in_time_and_earlier_names_come_back_by_replay(session):
    session.run("import random\nnumbers = [random.random() for _ in range(3)]\ns = {'a', 'b', 'c'}")
    before = session.run("str([numbers, s, random.random()])").result
    began = time.monotonic()
    late = session.run("while True: pass", timeout=0.5)
    assert late.status == "timeout" and 0.5 <= late.wall_s < 4 and time.monotonic() - began < 5
    assert late.cpu_s > 0.005
    told = session.run("str([numbers, s])")
    assert (told.status, told.state) == ("ok", "replayed")
    assert before.startswith(told.result[:-2])
    assert session.run("1").state == "live"


def test_a_session_that_gave_its_process_to_another_goes_on_by_replay():
    with Sandbox.start(workers=2, max_sessions=2, spares=0, libraries="") as sandbox:
        sessions = [sandbox.session() for _ in range(5)]
        for number, session in enumerate(sessions):
            session.run(f"x = {number}")
        told = [session.run("x") for session in sessions]
        assert [one.result for one in told] == ["0", "1", "2", "3", "4"]
        assert [one.state for one in told] == ["replayed"] * 5
        assert sessions[4].run("x").state == "live"
        assert sandbox.stats()["children"] <= 2 and sandbox.stats()["parked"] == 3


DISPLAYED = [
    "list(range(40))", "{'a': 1, 'b': [1, 2]}", "{3, 1, 2}", "[i for i in range(2000)]", "('x' * 50, 'y' * 50)", "int", "print",
    "1 / 3", "'text'", "{}", "frozenset([2, 1])", "sympy.sqrt(2) / x", "[sympy.Rational(1, 3)]", "numpy.arange(30) / 7",
    "numpy.float64(2)", "pandas.DataFrame({'a': [1, 2]})", "ValueError('x')", "collections.Counter('aab')", "range(3)", "1 + 2j",
    "{'k' * 30: ['v' * 30, 'w' * 30]}", "[[1] * 30, [2] * 30]", "b'bytes'", "...", "collections.OrderedDict(a=1)", "[[]]",
]  # fmt: skip


@pytest.mark.slow
def test_values_are_shown_as_ipython_shows_them(session):
    pretty = pytest.importorskip("IPython.lib.pretty").pretty
    given = "import collections, numpy, pandas, sympy\nx = sympy.Symbol('x')"
    names: dict = {}
    exec(given, names)
    session.run(given)
    for expression in DISPLAYED:
        shown = session.run(expression).result
        assert shown == pretty(eval(expression, names), max_width=79, max_seq_length=1000), expression


def test_numpy_is_seeded_too(sandbox):
    with sandbox.session() as session:
        first = session.run("import numpy as np\nx = np.random.rand(3)\nx.tolist()", timeout=60)
        assert first.status == "ok", first.stderr
        assert session.run("import os; os._exit(1)").status == "exit"
        told = session.run("x.tolist()", timeout=60)
    assert (told.result, told.state) == (first.result, "replayed")


def test_blocks_that_failed_are_replayed_for_the_names_they_made(session):
    session.run("a = 1\n1 / 0")
    session.run("import os; os._exit(0)")
    told = session.run("a")
    assert (told.result, told.state) == ("1", "replayed")


@pytest.mark.slow
def test_names_that_cannot_be_made_again_are_lost_and_nothing_is_answered(sandbox):
    with sandbox.session() as session:
        until = time.time() + 3
        assert session.run(f"import os, time\nassert time.time() < {until}\nx = 1").status == "ok"
        session.run("os._exit(0)")
        time.sleep(max(0, until - time.time()))
        for _ in range(2):
            told = session.run("x")
            assert (told.status, told.state, told.result) == ("lost", "lost", None)
            assert "block 1 ended as error, before as ok" in told.stderr


def test_display_runs_inside_the_time_limit(session):
    told = session.run("class A:\n    def __repr__(self):\n        while True: pass\nA()", timeout=0.4)
    assert told.status == "timeout"


def test_memory_errors_are_told_and_survived(session):
    session.run("x = 1")
    assert session.run("bytearray(10**11)").status == "memory"
    told = session.run("x")
    assert (told.result, told.state) == ("1", "live")


def test_sessions_do_not_see_each_other(sandbox):
    with sandbox.session() as one, sandbox.session() as other:
        one.run("x = 1\nopen('file', 'w').write('1')")
        assert other.run("x").status == "error"
        assert other.run("import os; os.listdir()").result == "[]"


def test_threads_may_share_a_blocking_sandbox(sandbox):
    results: dict[int, str | None] = {}

    def work(number: int) -> None:
        with sandbox.session() as session:
            session.run(f"x = {number}")
            results[number] = session.run("x").result

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: str(number) for number in range(8)}


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"timeout": -1}, {"timeout": "soon"}, {"max_output": -1}])
def test_arguments_without_sense_are_refused(session, arguments):
    with pytest.raises(ValueError, match=r"give (seconds|characters)"):
        session.run("1", **arguments)


def test_an_expression_at_the_end_is_found():
    assert parts_of("1\n2", "<cell>")[1] is not None
    assert parts_of("x = 1", "<cell>")[1] is None
