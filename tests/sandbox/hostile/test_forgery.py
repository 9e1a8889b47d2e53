"""Descriptor 3 in hostile hands: whatever comes out of it harms its own session alone."""

import json
import os
import socket
import time

import pytest

from mathmill.sandbox.frames import HEADER, VERSION, encode
from tests.sandbox.hostile.attempts import ENDED, REFUSED, assert_goes_on, call, errno_of, lives, value

ANSWER = {"id": 1, "status": "ok", "result": "forged", "traceback": "", "cut": False, "cpu_s": 0.1}
"""What a genuine runner answers to the first block."""
SOON_S = 5.0


def sent(data: bytes, then: str = "time.sleep(9)") -> str:
    """A block that writes these bytes to the channel, all of them."""
    return f"import os, time\ndata = {data!r}\nwhile data: data = data[os.write(3, data):]\n{then}"


def frame(body: bytes) -> bytes:
    return HEADER.pack(VERSION, len(body)) + body


def forged(**changes) -> bytes:
    """A well-formed answer with these fields changed."""
    return frame(json.dumps(ANSWER | changes).encode())


def assert_crash(sandbox, session, data: bytes) -> None:
    """The bytes end the block at once as a crash; the session's next block and the sandbox work."""
    session.run("kept = 7")
    told = session.run(sent(data), timeout=5)
    assert (told.status, told.result) == ("crash", None), told
    assert told.wall_s < SOON_S
    after = session.run("kept")
    assert (after.status, after.result, after.state) == ("ok", "7", "replayed")
    assert sandbox.stats()["sessions"] >= 2


def assert_own_harm(sandbox, session, data: bytes, then: str = "time.sleep(9)") -> None:
    """The bytes may stand for their own block's answer, or end it as a crash, but nothing else comes of them."""
    told = session.run(sent(data, then), timeout=5)
    assert told.status in ENDED and told.status != "timeout" and told.wall_s < SOON_S, told
    assert told.state == "live"
    after = session.run("6 * 7", timeout=0.4)
    assert after.status in ENDED and after.result in ("42", None), after
    assert sandbox.stats()["sessions"] >= 2


def test_an_unknown_version_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, bytes([VERSION + 1]) + forged()[1:])


def test_a_message_of_four_gigabytes_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, bytes([VERSION, 255, 255, 255, 255]))


def test_a_message_longer_than_any_answer_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, HEADER.pack(VERSION, 10_000_000))


def test_an_empty_message_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(b""))


def test_a_message_that_is_no_json_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(b"{'id': 1}"))


def test_a_message_that_is_no_text_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(b'{"id": 1, "status": "\xff\xfe"}'))


def test_a_message_that_is_a_list_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(b"[1, 2]"))


def test_a_message_nested_deeper_than_a_parser_goes_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(b'{"id":' + b"[" * 3000))


def test_a_number_of_thousands_of_digits_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(b'{"id":' + b"9" * 6000 + b"}"))


def test_a_number_that_is_none_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, frame(json.dumps(ANSWER | {"cpu_s": float("nan")}).encode()))


def test_an_answer_without_its_fields_is_a_crash(sandbox, session):
    assert_crash(sandbox, session, encode({"id": 2}))


@pytest.mark.parametrize("number", [True, 2.0, "2", None, [2], -1, 10**30])
def test_an_answer_to_no_question_is_a_crash(sandbox, session, number):
    assert_crash(sandbox, session, forged(id=number))


@pytest.mark.parametrize("status", ["lost", "timeout", "output", "crash", "", "OK", None, 0, ["ok"], {"ok": 1}])
def test_a_status_that_a_runner_cannot_give_is_a_crash(sandbox, session, status):
    assert_crash(sandbox, session, forged(id=2, status=status))


@pytest.mark.parametrize("result", [5, True, ["a"], {"a": 1}])
def test_a_result_that_is_no_text_is_a_crash(sandbox, session, result):
    assert_crash(sandbox, session, forged(id=2, result=result))


def test_a_result_longer_than_asked_for_is_a_crash_or_is_cut(sandbox, session):
    session.run("1")
    told = session.run(sent(forged(id=2, result="x" * 2000)), max_output=100, timeout=5)
    assert told.status in ("ok", "crash") and len(told.result or "") <= 100 and told.wall_s < SOON_S
    assert session.run("6 * 7").result == "42"


@pytest.mark.parametrize("cpu_s", [-1.0, 1e99, "0.1", None, True])
def test_a_time_that_cannot_be_is_a_crash_or_is_not_believed(session, cpu_s):
    session.run("1")
    told = session.run(sent(forged(id=2, cpu_s=cpu_s)), timeout=5)
    assert told.status in ("ok", "crash") and type(told.cpu_s) is float and 0 <= told.cpu_s < 5, told
    assert session.run("6 * 7").result == "42"


def test_a_forged_answer_stands_for_its_own_block_alone(sandbox, session, neighbour):
    assert_own_harm(sandbox, session, forged())
    assert neighbour.run("mine").result == "41"


def test_a_forged_answer_cannot_change_what_was_measured_outside(session):
    outside = {"wall_s": 99.0, "state": "lost", "stdout": "forged", "stderr": "forged", "truncated": True}
    told = session.run(sent(forged(**outside)), timeout=5)
    assert told.wall_s < SOON_S and told.state == "live" and "forged" not in told.stdout + told.stderr


def test_an_answer_sent_ahead_does_not_answer_the_next_block(sandbox, session):
    ahead = b"".join(forged(id=number) for number in range(1, 6))
    assert_own_harm(sandbox, session, ahead)
    assert_own_harm(sandbox, session, ahead, then="'mine'")


def test_a_thousand_answers_at_once_are_one_at_most(sandbox, session):
    assert_own_harm(sandbox, session, forged() * 1000)


def test_answers_without_end_are_stopped(sandbox, session, neighbour):
    body = f"import os\nwhile True: os.write(3, {forged(id=9)!r} * 100)"
    told = session.run(body, timeout=5)
    assert told.status in ("crash", "ok") and told.wall_s < SOON_S
    assert neighbour.run("mine").wall_s < SOON_S
    assert session.run("6 * 7").result == "42"


def test_blanks_without_end_are_stopped(session):
    told = session.run(
        f"import os\nos.write(3, {HEADER.pack(VERSION, 2000)!r})\nwhile True: os.write(3, b' ' * 65536)", timeout=5
    )
    assert told.status == "crash" and told.wall_s < SOON_S
    assert_goes_on(session)


def test_half_a_message_does_not_hold_the_deadline_up(session):
    told = session.run(sent(forged()[:20]), timeout=0.3)
    assert told.status == "timeout" and told.wall_s < 0.3 + SOON_S
    assert_goes_on(session)


def test_a_message_byte_by_byte_does_not_hold_the_deadline_up(session):
    slowly = HEADER.pack(VERSION, 400) + b" " * 400
    code = f"import os, time\nfor byte in {slowly!r}: os.write(3, bytes([byte])), time.sleep(0.02)"
    told = session.run(code, timeout=0.4)
    assert told.status == "timeout" and told.wall_s < 0.4 + SOON_S
    assert_goes_on(session)


def test_half_a_message_before_the_real_answer_is_a_crash(session):
    """The runner's own answer is read as the rest of the message."""
    session.run("1")
    told = session.run(sent(HEADER.pack(VERSION, 30), then="'real'"), timeout=5)
    assert told.status == "crash" and told.wall_s < SOON_S
    assert_goes_on(session)


@pytest.mark.parametrize(
    "request_", [{"op": "close"}, {"op": "stats"}, {"op": "run", "code": "1"}, {"op": "hello", "client": "x" * 16}]
)
def test_a_request_on_the_channel_is_not_obeyed(sandbox, session, request_):
    assert_crash(
        sandbox, session, encode({"id": 2, "session": "x", "index": 0, "timeout": 1, "version": VERSION} | request_)
    )


def test_a_greeting_said_again_is_a_crash(sandbox, session):
    session.run("kept = 7")
    told = session.run(sent(encode({"ready": True, "cpu_s": 0.0})), timeout=5)
    assert told.status == "crash" and told.wall_s < SOON_S
    assert session.run("kept").state == "replayed"


def test_a_forged_result_that_cannot_be_written_as_text_reaches_its_own_block_alone(sandbox, session, neighbour):
    assert_own_harm(sandbox, session, forged(result="\ud800"))
    assert neighbour.run("'\\ud800'").status in ("ok", "error")


def test_a_closed_channel_is_a_crash(session):
    session.run("kept = 7")
    told = session.run("import os, time\nos.close(3)\ntime.sleep(9)", timeout=5)
    assert told.status == "crash" and told.wall_s < SOON_S
    assert session.run("kept").state == "replayed"


def test_all_descriptors_closed_is_an_ending(session):
    session.run("kept = 7")
    told = session.run("import os\nos.closerange(0, 64)", timeout=5)
    assert told.status in ("crash", "exit") and told.wall_s < SOON_S
    assert session.run("kept").state == "replayed"


def test_a_channel_that_something_else_was_put_in_place_of_is_a_crash(session):
    session.run("kept = 7")
    told = session.run("import os, time\nos.dup2(0, 3)\ntime.sleep(9)", timeout=5)
    assert told.status == "crash" and told.wall_s < SOON_S
    assert session.run("kept").state == "replayed"


def test_a_channel_turned_into_a_pipe_to_oneself_harms_only_its_own_session(session):
    told = session.run("import os\nback, there = os.pipe()\nos.dup2(there, 3)\n5", timeout=2)
    assert told.status in ENDED and told.wall_s < 2 + SOON_S
    assert session.run("6 * 7", timeout=2).status in ENDED


def test_a_channel_made_non_blocking_harms_only_its_own_session(session):
    told = session.run("import os\nos.set_blocking(3, False)\n5", timeout=2)
    assert told.status in ENDED and told.wall_s < 2 + SOON_S
    assert session.run("6 * 7", timeout=2).status in ENDED


def test_a_thread_that_steals_the_next_block_harms_only_its_own_session(session):
    session.run("import os, threading\nthreading.Thread(target=os.read, args=(3, 1 << 16), daemon=True).start()")
    told = session.run("6 * 7", timeout=0.5)
    assert told.status in ("timeout", "crash", "ok") and told.result in ("42", None)
    assert told.wall_s < 0.5 + SOON_S


def test_a_copy_of_the_channel_is_as_good_as_the_channel_and_no_better(sandbox, session):
    session.run("kept = 7")
    told = session.run(
        "import os, time\ncopy = os.dup(3)\nos.close(3)\nos.write(copy, b'junk')\ntime.sleep(9)", timeout=5
    )
    assert told.status == "crash" and told.wall_s < SOON_S
    assert session.run("kept").state == "replayed"


def test_junk_on_every_descriptor_is_a_crash(session):
    session.run("kept = 7")
    code = "import os, time\nfor n in range(64):\n    try: os.write(n, b'junk' * 99)\n    except OSError: pass\ntime.sleep(9)"
    told = session.run(code, timeout=5)
    assert told.status == "crash" and told.wall_s < SOON_S and told.stdout.startswith("junkjunk")
    assert session.run("kept").state == "replayed"


def test_no_other_descriptor_was_inherited(session):
    code = "import os\nopen_ones = []\nfor n in range(1024):\n    try: os.fstat(n)\n    except OSError: continue\n"
    assert value(session.run(code + "    open_ones.append(n)\nopen_ones")) == [0, 1, 2, 3]


def test_the_channel_cannot_be_connected_elsewhere(session):
    name = f"\0mathmill-hostile-{os.getpid()}".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(name)
        listening.listen()
        listening.settimeout(0.1)
        returned, error = call(session, "connect", 3, b"\x01\0" + name, 2 + len(name))
        assert returned == -1 and error in (*REFUSED, "EISCONN", "ECONNREFUSED"), error
        with pytest.raises(TimeoutError):
            listening.accept()
    assert lives(session)


def test_the_channel_cannot_be_made_to_listen(session):
    returned, error = call(session, "listen", 3, 5)
    assert returned == -1 and error in (*REFUSED, "EINVAL", "EOPNOTSUPP")
    assert lives(session)


def test_standard_input_holds_nothing_and_cannot_be_written(session):
    assert value(session.run("import os\nos.read(0, 100)")) == b""
    assert errno_of(session, "os.write(0, b'x')") in ("EBADF", *REFUSED)


def test_standard_output_cannot_be_read(session):
    assert errno_of(session, "os.read(1, 1)") in ("EBADF", *REFUSED)


def test_functions_that_the_runner_uses_can_be_broken_for_its_own_session_alone(session):
    code = """
import builtins, io, json, marshal, os, sys, time, traceback
def broken(*_, **__): raise RuntimeError('broken')
for module in (json, marshal, os, sys, time, traceback, io, builtins):
    for name in list(vars(module)):
        if callable(getattr(module, name)) and not name.startswith('__'):
            try: setattr(module, name, broken)
            except Exception: pass
"""
    began = time.monotonic()
    assert session.run(code, timeout=2).status in ENDED
    assert session.run("6 * 7", timeout=2).status in ENDED
    assert time.monotonic() - began < 12


def test_source_with_a_null_byte_is_an_error(session):
    told = session.run("x = '\0'")
    assert told.status == "error" and lives(session)


def test_source_with_half_a_surrogate_is_an_error_or_runs(session):
    told = session.run("x = '\ud800'\n1")
    assert told.status in ("ok", "error") and lives(session)


def test_source_that_claims_another_encoding_is_read_as_text(session):
    assert value(session.run("# -*- coding: rot13 -*-\n'\u00e9' + 'a'")) == "\u00e9a"


def test_source_nested_too_deep_is_an_ending_and_the_session_goes_on(session):
    session.run("kept = 7")
    told = session.run("(" * 5000 + ")" * 5000, timeout=5)
    assert told.status in ("error", "memory", "crash") and told.result is None
    assert session.run("kept").result == "7"


def test_source_with_too_many_operators_is_an_ending_and_the_session_goes_on(session):
    session.run("kept = 7")
    assert session.run("-" * 100_000 + "1", timeout=5).status in ("error", "memory", "crash")
    assert session.run("+".join(["1"] * 100_000), timeout=5).status in ("ok", "error", "memory", "crash")
    assert session.run("kept").result == "7"


def test_source_too_long_to_be_sent_is_an_error_and_harms_nobody(session, neighbour):
    told = session.run("#" * (5 << 20))
    assert told.status == "error" and told.stderr
    assert neighbour.run("mine").result == "41"
    assert_goes_on(session, state="live")


def test_source_that_ends_in_the_middle_is_an_error(session):
    for source in ("def f(:", "'''", "if True:", "\\", "x = [", "\tx\n  y", "\x0c\x0c("):
        told = session.run(source)
        assert told.status == "error" and "Error" in told.stderr.splitlines()[-1], (source, told)
    assert lives(session)
