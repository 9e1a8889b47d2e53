"""The journal of a shard on a disk that fails: half a line is never followed by another, and a failure is told with its file."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mathmill.files import publish_once, write_whole
from mathmill.generation.journal import OpenShard
from mathmill.generation.parts import journaled, publish
from mathmill.generation.shards import Shard
from mathmill.records import lines_of
from tests.generation.making import problems_like, run_with, solution_of

SHARD = Shard(0, 3, 0, 1)


@pytest.fixture
def opened(tmp_path):
    problems = problems_like(4)
    _, folder = run_with(tmp_path, problems)
    left = set(SHARD.keys(problems))
    return OpenShard(folder, SHARD, None, problems, f"{SHARD.name}.0001.a", left)  # type: ignore[arg-type]


def failing(call, number, problem_on=1):
    """The call, which fails with this errno from its `problem_on`-th time on."""
    count = iter(range(1, 1000))

    def failing_call(*arguments):
        if next(count) >= problem_on:
            raise OSError(number, os.strerror(number))
        return call(*arguments)

    return failing_call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("name", ["write", "fsync", "close", "open"])
def test_a_failure_at_any_call_is_told_with_the_file_and_later_rows_are_refused(name, number, opened, monkeypatch):
    first, second, third = (solution_of(opened.problems[n], 0) for n in range(3))
    with monkeypatch.context() as broken:
        if name == "open":
            broken.setattr(os, "open", failing(os.open, number))
        else:
            opened.journal(first)
            broken.setattr(os, name, failing(getattr(os, name), number))
        with pytest.raises(OSError) as told:
            opened.journal(second)
            opened.close()
    assert told.value.errno == number and told.value.filename.endswith(f"{opened.label}.jsonl")
    with pytest.raises(OSError):
        opened.journal(third)
    kept = journaled(opened.folder, SHARD)
    assert kept == {(row.problem_id, 0) for row in (first, second)} - (
        {("toy/test/1", 0)} if name == "write" else set()
    ) or (name == "open" and kept == set())


def test_half_a_line_is_the_last_one(opened, monkeypatch):
    first, second, third = (solution_of(opened.problems[n], 0) for n in range(3))
    opened.journal(first)
    with monkeypatch.context() as full:
        whole = os.write
        full.setattr(os, "write", lambda descriptor, line: whole(descriptor, line[: len(line) // 2]))
        with pytest.raises(OSError, match="No space left"):
            opened.journal(second)
    with pytest.raises(OSError, match="No space left"):
        opened.journal(third)
    assert journaled(opened.folder, SHARD) == {(first.problem_id, 0)}
    assert third.sample_index == 0 and ("toy/test/2", 0) in opened.left


def test_a_part_that_went_because_another_published_the_shard_is_no_failure(opened, monkeypatch):
    opened.journal(solution_of(opened.problems[0], 0))
    rows = [solution_of(problem, sample) for problem in opened.problems for sample in (0, 1)]
    (opened.folder.parts / f"{SHARD.name}.0002.b.jsonl").write_bytes(lines_of(rows))
    assert publish(opened.folder, SHARD, opened.problems)
    for name in ("write", "fsync", "close"):
        monkeypatch.setattr(os, name, failing(getattr(os, name), errno.ESTALE))
    opened.journal(solution_of(opened.problems[1], 0))
    opened.sync()
    opened.close()


FULL_DISK = """
import os, subprocess, sys
parts, job = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", parts], check=True)
for size in ("16k", "64m"):
    subprocess.run(["mount", "-o", f"remount,size={size}", parts], check=True)
    done = subprocess.run([sys.executable, "-m", "mathmill.generation", job], stderr=subprocess.PIPE, text=True)
    print(done.returncode, "Traceback" in done.stderr, done.stderr.strip().splitlines()[-1], sep="|")
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path):
    from mathmill.generation.verify import verify_set
    from tests.generation.test_worker import stage

    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a small file system needs CAP_SYS_ADMIN")
    with stage(tmp_path, num_problems=40, problems_per_shard=40) as (folder, worker):
        script = [sys.executable, "-c", FULL_DISK, folder.parts, tmp_path / "runs" / "toy" / "jobs" / "generate.json"]
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", *script],
            env=worker.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        full, again = done.stdout.splitlines()
        assert full.startswith("2|False|error: ") and "No space left on device; make room on this file system" in full
        assert again.startswith("0|False|")
        proof = verify_set(folder, {""})
        assert proof.holds and proof.num_made == 80, proof.lines()


def test_a_command_on_a_full_disk_ends_with_one_line(tmp_path, capsys):
    from mathmill.options import ended_by

    def fail():
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(Path("runs/x")))

    with pytest.raises(SystemExit) as ended:
        ended_by(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: runs/x: Disk quota exceeded; make room, or have your quota raised\n"


def test_a_file_that_could_not_be_written_is_named_and_nothing_stays(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # fsync names no file

    monkeypatch.setattr(os, "fsync", full)
    for write in (publish_once, write_whole):
        with pytest.raises(OSError, match=r"No space left on device: .*here'"):
            write(tmp_path / "here", "content")
    assert not list(tmp_path.iterdir())
