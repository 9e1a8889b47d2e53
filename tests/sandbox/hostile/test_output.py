"""Blocks that say too much, or what cannot be said."""

import pytest

from tests.sandbox.hostile.attempts import ENDED, assert_goes_on

FLOOD = 20 << 20
"""Bytes: more than a block may print."""


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_flood_is_stopped_and_told(session, descriptor):
    session.run("kept = 7")
    told = session.run(f"import os\nwhile True: os.write({descriptor}, b'x' * 65536)", max_output=1000, timeout=20)
    assert told.status == "output" and told.truncated and told.wall_s < 5
    text = (told.stdout, told.stderr)[descriptor - 1]
    assert 0 < len(text) <= 1000 and set(text) == {"x"}
    assert session.run("kept").state == "replayed"


def test_a_flood_of_prints_is_stopped(session):
    assert session.run("while True: print('x' * 10 ** 6)", timeout=20).status == "output"
    assert_goes_on(session)


def test_a_flood_that_ends_by_itself_is_told_as_a_flood(session):
    told = session.run(f"import os, time\nfor _ in range({FLOOD >> 16}): os.write(1, bytes(65536))\ntime.sleep(2)")
    assert told.status == "output" and told.wall_s < 8


def test_a_lot_that_is_no_flood_is_cut_and_told(session):
    told = session.run("print('x' * 10_000_000)", max_output=1000, timeout=20)
    assert (told.status, told.stdout, told.truncated) == ("ok", "x" * 1000, True)
    assert_goes_on(session, state="live")


def test_what_earlier_blocks_printed_does_not_count(session):
    for _ in range(3):
        assert session.run("print('x' * 10_000_000)", max_output=10, timeout=20).status == "ok"
    assert_goes_on(session, state="live")


def test_stdout_and_stderr_are_cut_each_for_itself(session):
    told = session.run("import sys\nprint('a' * 100, end='')\nprint('b' * 100, end='', file=sys.stderr)", max_output=10)
    assert (told.stdout, told.stderr, told.truncated) == ("a" * 10, "b" * 10, True)


def test_output_of_just_the_limit_is_whole(session):
    told = session.run("print('a' * 10, end='')", max_output=10)
    assert (told.stdout, told.truncated) == ("a" * 10, False)


def test_no_output_is_kept_where_none_is_wanted(session):
    told = session.run("print('a')\n'b'", max_output=0)
    assert (told.status, told.stdout, told.stderr, told.truncated) == ("ok", "", "", True) and not told.result


def test_a_result_beyond_the_limit_is_cut(session):
    told = session.run("'a' * 10 ** 7", max_output=100, timeout=20)
    assert told.status == "ok" and told.truncated and len(told.result) <= 100 and told.result.startswith("'aaaa")
    assert_goes_on(session, state="live")


def test_a_long_error_is_cut_and_its_end_is_kept(session):
    told = session.run("raise ValueError('a' * 10 ** 7 + 'the end')", max_output=1000, timeout=20)
    assert told.status == "error" and told.truncated and len(told.stderr) <= 2000
    assert told.stderr.rstrip().endswith("the end")


def test_a_result_that_lies_about_its_length_is_cut_all_the_same(session):
    code = """
class S(str):
    def __len__(self): return 0
    def __getitem__(self, key): return self
    def __str__(self): return self
    def encode(self, *_): return b'x' * 10 ** 6
class A:
    def __repr__(self): return S('x' * 10 ** 6)
A()
"""
    told = session.run(code, max_output=100, timeout=20)
    assert told.status in ("ok", "error", "crash") and len(told.result or "") <= 100 and len(told.stderr) <= 200


def test_a_display_that_is_no_text_is_an_error(session):
    told = session.run("class A:\n    def __repr__(self): return 5\nA()")
    assert told.status == "error" and "TypeError" in told.stderr
    assert_goes_on(session, state="live")


def test_a_display_that_fails_is_an_error(session):
    told = session.run("class A:\n    def __repr__(self): raise KeyError('gone')\nA()")
    assert told.status == "error" and "KeyError" in told.stderr
    assert_goes_on(session, state="live")


def test_a_display_that_leaves_is_an_exit(session):
    assert session.run("class A:\n    def __repr__(self): raise SystemExit\nA()").status in ("exit", "error")
    assert_goes_on(session, state="live")


def test_a_display_that_prints_prints_to_stdout(session):
    told = session.run("class A:\n    def __repr__(self):\n        print('aside')\n        return 'shown'\nA()")
    assert (told.status, told.stdout, told.result) == ("ok", "aside\n", "shown")


def test_characters_of_many_bytes_are_not_cut_in_two(session):
    told = session.run("print('\\U0001f600' * 50)\n'\\U0001f600' * 50", max_output=11)
    assert told.stdout == "\U0001f600" * 11 and told.result == "'" + "\U0001f600" * 10


def test_a_result_of_the_longest_characters_fits_its_message(session):
    told = session.run("class A:\n    def __repr__(self): return '\\U0010ffff' * 10_000\nA()", max_output=10_000)
    assert (told.status, told.truncated) == ("ok", False) and told.result == "\U0010ffff" * 10_000


def test_bytes_that_are_no_text_are_replaced(session):
    told = session.run("import os\n_ = os.write(1, b'a\\xff\\xfe\\xc3b')")
    assert told.status == "ok" and told.stdout == b"a\xff\xfe\xc3b".decode(errors="replace")


def test_control_characters_come_as_they_are(session):
    text = "\0\x1b[31m\r\x07\x7f\u2028\u202e"
    told = session.run(f"import os\n_ = os.write(1, {text.encode()!r})")
    assert (told.status, told.stdout) == ("ok", text)


def test_half_a_surrogate_breaks_nothing(session):
    told = session.run("print('before', flush=True)\nprint('\\ud800')")
    assert told.status in ("ok", "error") and told.stdout.startswith("before\n")
    told = session.run("class A:\n    def __repr__(self): return '\\udfff'\nA()")
    assert told.status in ("ok", "error")
    assert_goes_on(session, state="live")


def test_what_looks_like_a_message_is_text_on_stdout(session):
    message = b'\x01\0\0\0\x4a{"id":1,"status":"ok","result":"forged","traceback":"","cut":false,"cpu_s":0.1}'
    told = session.run(f"import os\n_ = os.write(1, {message!r})\n'real'")
    assert (told.status, told.result, told.stdout) == ("ok", "'real'", message.decode(errors="replace"))


def test_what_was_printed_before_a_timeout_is_told(session):
    told = session.run("print('before', flush=True)\nwhile True: pass", timeout=0.3)
    assert (told.status, told.stdout) == ("timeout", "before\n")


def test_what_was_printed_before_a_crash_is_told(session):
    told = session.run("import ctypes\nprint('before', flush=True)\nctypes.string_at(0)")
    assert (told.status, told.stdout) == ("crash", "before\n")


def test_what_was_printed_before_leaving_at_once_is_told(session):
    told = session.run("import os\nprint('before', flush=True)\nos._exit(0)")
    assert (told.status, told.stdout) == ("exit", "before\n")


def test_a_closed_stdout_harms_only_its_own_session(session):
    assert session.run("import sys\nsys.stdout.close()\nprint(1)").status == "error"
    told = session.run("6 * 7")
    assert told.status in ENDED and told.result in ("42", None)


def test_a_closed_descriptor_of_output_does_not_hold_the_block_up(session):
    told = session.run("import os\nos.close(1)\nos.close(2)\n6 * 7", timeout=5)
    assert told.status in ("ok", "error", "crash") and told.wall_s < 8
    assert session.run("6 * 7", timeout=5).status in ENDED


def test_descriptors_of_output_given_to_each_other_are_only_swapped(session):
    told = session.run("import os\nos.dup2(1, 2)\n_ = os.write(2, b'here')")
    assert (told.status, told.stdout, told.stderr) == ("ok", "here", "")


def test_no_stdout_at_all_is_survived(session):
    session.run("import sys\nsys.stdout = sys.stderr = None\nprint('nowhere')")
    told = session.run("6 * 7")
    assert (told.status, told.result) == ("ok", "42")


def test_a_stdout_that_fails_is_survived(session):
    code = (
        "import sys\nclass Bad:\n    def __getattr__(self, name): raise MemoryError\nsys.stdout = sys.stderr = Bad()\n1"
    )
    assert session.run(code).status in ENDED
    assert session.run("6 * 7").status in ENDED
    session.run("import os\nos._exit(0)")
    assert session.run("6 * 7").status in ENDED


def test_output_made_non_blocking_loses_only_its_own(session):
    told = session.run(
        "import os\nos.set_blocking(1, False)\nfor _ in range(100): os.write(1, b'x' * 10 ** 6)", timeout=20
    )
    assert told.status in ("ok", "error", "output")
    assert session.run("6 * 7").status in ENDED


def test_output_of_one_session_does_not_come_to_another(session, neighbour):
    session.run("import os\n_ = os.write(1, b'mine' * 1000), os.write(2, b'mine' * 1000)")
    told = neighbour.run("print('ours')")
    assert (told.stdout, told.stderr) == ("ours\n", "")


def test_output_is_not_carried_over_to_the_next_block(session):
    session.run("print('x' * 100_000)", max_output=10)
    told = session.run("print('y')")
    assert (told.stdout, told.stderr, told.truncated) == ("y\n", "", False)


def test_a_buffer_that_a_block_left_unflushed_belongs_to_that_block(session):
    assert session.run("import sys\n_ = sys.stdout.write('no newline')").stdout == "no newline"
    assert session.run("1").stdout == ""
