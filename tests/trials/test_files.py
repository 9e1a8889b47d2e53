"""Trials of the files alone: takeovers that are raced for, and parts cut at every byte."""

import os
import subprocess
import sys

import msgspec
import pytest

from mathmill.generation.claims import Claims, Heartbeat, this_worker
from mathmill.generation.parts import journaled, publish, whole_lines
from mathmill.generation.shards import cut
from mathmill.records import line_of, lines_of
from tests.generation.making import problems_like, run_with, solution_of
from tests.trials.scene import asked_for

pytestmark = pytest.mark.trial
RACERS = 6
RACER = """
import sys
from pathlib import Path
from mathmill.generation.claims import Claims, Heartbeat, this_worker
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import shard_of
from mathmill.run import Run
run = Run(Path(sys.argv[1])); folder = SetFolder(run.solutions / "toy-test")
card = this_worker(); beat = Heartbeat(run, card); claims = Claims(run, card)
print("ready", flush=True)
for line in sys.stdin:
    taken = claims.take(folder, [shard_of(line.strip())])
    print("none" if taken is None else f"{taken[0].name} {taken[1]}", flush=True)
"""


def test_a_stale_claim_that_many_take_at_once_has_one_new_owner(tmp_path):
    wanted = asked_for("takeovers")
    run, folder = run_with(tmp_path, problems_like(wanted), num_samples=1, problems_per_shard=1, samples_per_shard=1)
    shards = cut(folder.load(), folder.extents())
    dead = Claims(run, msgspec.structs.replace(this_worker(), host="elsewhere"))
    beat = Heartbeat(run, dead.card, beat_s=10_000)
    for shard in shards:
        assert dead.take(folder, [shard]) == (shard, 1)
    os.utime(beat.path, (1, 1))
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, run.folder], stdin=-1, stdout=-1, text=True)
        for _ in range(RACERS)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for shard in shards:
        for racer in racers:
            racer.stdin.write(f"{shard.name}\n")
        for racer in racers:
            racer.stdin.flush()
        answers = sorted(racer.stdout.readline() for racer in racers)
        assert answers == ["none\n"] * (RACERS - 1) + [f"{shard.name} 2\n"], answers
    for racer in racers:
        racer.communicate("")
    beat.end()
    print(f"{wanted} stale claims, each raced for by {RACERS} processes: one owner each")


def test_a_part_of_1000_rows_that_is_cut_at_any_byte_resumes(tmp_path):
    problems = problems_like(1000)
    _, folder = run_with(tmp_path, problems, num_samples=1, problems_per_shard=1000, samples_per_shard=1)
    [shard] = cut(folder.load(), folder.extents())
    rows = [solution_of(problem, 0) for problem in problems]
    lines = [line_of(row) for row in rows]
    part = folder.parts / f"{shard.name}.0001.a.jsonl"
    part.write_bytes(b"".join(lines))
    end = part.stat().st_size
    num_cuts = 0
    for number in range(len(lines), 0, -1):
        expected = {(row.problem_id, 0) for row in rows[: number - 1]}
        start = end - len(lines[number - 1])
        for cut_at in range(end - 1, start - 1, -1):  # within the line, and just before it
            os.truncate(part, cut_at)
            assert whole_lines(part) == lines[: number - 1], cut_at
            num_cuts += 1
            if cut_at in (end - 1, (start + end) // 2, start):
                assert journaled(folder, shard) == expected, cut_at
        if number % 50 == 1:  # and a follower makes what is lacking
            saved = part.read_bytes()
            follower = folder.parts / f"{shard.name}.0002.b.jsonl"
            follower.write_bytes(lines_of(rows[number - 1 :]))
            assert publish(folder, shard, problems)
            published = folder.folder / f"{shard.name}.jsonl"
            assert published.read_bytes() == b"".join(lines)
            published.unlink()
            part.write_bytes(saved)
        end = start
    print(f"a part of {len(lines):,} rows cut at each of {num_cuts:,} places: every whole row is kept")
