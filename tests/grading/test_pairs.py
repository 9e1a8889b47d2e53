"""Files of pairs into files of verdicts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.grading import GradingPool
from mathmill.grading.pairs import grade_file

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
PAIRS = [
    {"id": 0, "expected": "5", "predicted": "5.0"},
    {"id": 1, "expected": "0.5", "predicted": r"\frac12", "other": {"kept": [1.50, None]}},
    {"id": 2, "expected": 7, "predicted": None},
    {"id": 3, "expected": None, "predicted": "3"},
    {"id": 4, "expected": "1/3", "predicted": 0.33},
    {"id": 5, "expected": "a b", "predicted": r"9^{9^{9}}", "verdict": "an older one"},
]


@pytest.fixture
def pool():
    pool = GradingPool(workers=1)
    yield pool
    pool.close()


def write_pairs(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_keeps_its_fields_and_gets_a_verdict(pool, tmp_path):
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "out" / "verdicts.jsonl"
    tally = grade_file(pairs, output, pool)

    rows = read_lines(output)
    assert [{**row, "verdict": 0} for row in rows] == [{**row, "verdict": 0} for row in PAIRS]
    assert [(row["verdict"]["is_correct"], row["verdict"]["rule"]) for row in rows] == [
        (True, "number"), (True, "number"), (False, "no-answer"), (None, "no-expected"), (False, "number"), (False, "guard"),
    ]  # fmt: skip
    assert tally.lines() == [
        "correct                   2  number 2",
        "wrong                     3  number 1, no-answer 1, guard 1",
        "could not tell            1  no-expected 1",
    ]


def test_a_run_killed_at_any_byte_goes_on_to_the_same_file(pool, tmp_path):
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "verdicts.jsonl"
    whole_tally = grade_file(pairs, output, pool)
    whole = output.read_bytes()
    for size in range(len(whole) + 1):
        output.write_bytes(whole[:size])
        tally = grade_file(pairs, output, pool)
        assert output.read_bytes() == whole and tally == whole_tally


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"expected": "5"}], r"pairs.jsonl:7: a row needs `expected` and `predicted`; this one has no `predicted`"),
        ([{"expected": "5", "predicted": [1]}], r"pairs.jsonl:7: `predicted` must be text, a number or null"),
        ([[1]], r"pairs.jsonl:7: not a JSON object"),
    ],
)
def test_a_row_that_cannot_be_graded_is_named_and_those_before_it_are_written(pool, tmp_path, rows, complaint):
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", [*PAIRS, *rows]), tmp_path / "verdicts.jsonl"
    with pytest.raises(UserError, match=complaint):
        grade_file(pairs, output, pool)
    assert len(read_lines(output)) == len(PAIRS)


def test_verdicts_of_other_pairs_or_another_policy_are_refused(pool, tmp_path):
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "verdicts.jsonl"
    grade_file(pairs, output, pool)
    before = output.read_bytes()
    with pytest.raises(UserError, match="was graded with policy default"):
        grade_file(pairs, output, GradingPool(policy="strict"))
    with pytest.raises(UserError, match=r"verdicts.jsonl:1: is not the verdict of .*other.jsonl:1"):
        grade_file(write_pairs(tmp_path / "other.jsonl", PAIRS[::-1]), output, pool)
    with pytest.raises(UserError, match="has more rows than"):
        grade_file(write_pairs(tmp_path / "fewer.jsonl", PAIRS[:2]), output, pool)
    with pytest.raises(UserError, match="is also the file of pairs"):
        grade_file(pairs, pairs, pool)
    assert output.read_bytes() == before


def command(pairs: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "mathmill.grading", str(pairs), "--output", str(output), "--workers", "1", *more]


@pytest.mark.slow
def test_the_command_is_killed_and_goes_on(tmp_path):
    rows = [{"expected": rf"\sqrt{{{n}}}x", "predicted": rf"x\sqrt{{{n}}}+0"} for n in range(1500)]
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", rows), tmp_path / "verdicts.jsonl"
    first = subprocess.Popen(command(pairs, output), env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert 0 < len(read_lines(output)) < len(rows)

    second = subprocess.run(command(pairs, output), env=ENVIRONMENT, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert len(read_lines(output)) == len(rows)
    assert "symbolic 1,500" in second.stdout


@pytest.mark.slow
def test_the_command_tells_a_mistake_in_one_line(tmp_path):
    for more, complaint in ((["--policy", "loose"], "no grading policy 'loose'"), ([], "no file")):
        done = subprocess.run(
            command(tmp_path / "absent.jsonl", tmp_path / "verdicts.jsonl", *more),
            env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and complaint in done.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak of the process over 10 times as many rows, each pair new, stays within what the bounded caches take."""
    script = (
        "import sys; from pathlib import Path; from mathmill.grading import GradingPool;"
        "from mathmill.grading.pairs import grade_file;"
        "grade_file(Path(sys.argv[1]), Path(sys.argv[2]), GradingPool());"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peaks = []
    for count in (2_000, 20_000):
        pairs = write_pairs(
            tmp_path / f"{count}.jsonl",
            [{"expected": "x" * 1000, "predicted": "y" * 1000 + str(n)} for n in range(count)],
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(pairs), str(tmp_path / f"{count}.out")],
            env=ENVIRONMENT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 20, peaks
