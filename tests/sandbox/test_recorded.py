"""Programs of language models that others ran and recorded end here as they did there."""

import asyncio

import pytest

from benchmarks.sandbox_replay import (
    TARGET,
    UNEXPLAINED,
    Program,
    Reason,
    Replay,
    last_line,
    programs_of,
    reason_of,
    recorded_files,
    repeatable,
    replay_all,
    share_equal,
    spread,
)
from mathmill.sandbox import BlockResult

OF_EACH_FILE = 40


@pytest.mark.slow
def test_recorded_programs_end_as_recorded(dev_data):
    programs = [
        program for path in recorded_files(dev_data / "recorded") for program in spread(programs_of(path), OF_EACH_FILE)
    ]
    assert len(programs) > 200

    replays = asyncio.run(replay_all(programs, quiet=True))

    different = [(reason_of(replay), replay) for replay in replays if not replay.equal]
    assert [replay for reason, replay in different if reason is UNEXPLAINED] == []
    assert share_equal(replays) >= TARGET, different


def told(status: str, stdout: str = "", stderr: str = "") -> BlockResult:
    return BlockResult(
        status=status, stdout=stdout, stderr=stderr, result=None, wall_s=0, cpu_s=0, state="live", truncated=False
    )


@pytest.mark.parametrize(
    ("result", "line"),
    [
        (told("ok", "1\n2\n"), "2"),
        (told("ok", ""), "IndexError: list index out of range"),
        (told("ok", "a" * 60 + "b" * 60), "a" * 50 + "..." + "b" * 50),
        (told("error", "1\n", "Traceback\nNameError: name 'x' is not defined\n"), "NameError: name 'x' is not defined"),
        (told("timeout"), "timeout_decorator.timeout_decorator.TimeoutError: 'Timed Out'"),
    ],
)
def test_the_last_line_is_what_the_recording_holds(result: BlockResult, line: str):
    assert last_line(result) == line


@pytest.mark.parametrize(
    ("recorded", "here", "name", "deterministic"),
    [
        ("{a: 1, b: 2}", "{b: 2, a: 1}", "a newer sympy names a solution's symbols in another order", True),
        ("{a: 1, b: 2}", "{b: 2, a: 3}", "unexplained", True),
        (0.1 + 0.2, 0.3, "the last digits of a float", True),
        (3.0, 4.0, "unexplained", True),
        ("timeout_decorator.timeout_decorator.TimeoutError: 'Timed Out'", "3", "the recording is a timeout", False),
    ],
)
def test_a_difference_has_the_reason_that_holds_for_it(recorded, here, name: str, deterministic: bool):
    replay = Replay(Program("file", 0, "ans = 1", recorded, printed=False), "ok", [here], "")

    reason: Reason = reason_of(replay)
    assert (reason.name, reason.deterministic, repeatable(replay)) == (name, deterministic, deterministic)
