"""Claims: one owner a shard, the dead are followed, the living are left alone."""

import os
import subprocess
import sys
import time

import msgspec
import pytest

from mathmill.generation.claims import Claims, Heartbeat, this_worker
from mathmill.generation.shards import cut
from tests.generation.making import problems_like, run_with


@pytest.fixture
def made(tmp_path):
    run, folder = run_with(tmp_path, problems_like(16))
    return run, folder, cut(folder.load(), folder.extents())


def claims_of(run, **changes):
    return Claims(run, msgspec.structs.replace(this_worker(), **changes), beat_s=0.1, lease_s=1.0)


def test_a_shard_has_one_owner(made):
    run, folder, shards = made
    one, other = claims_of(run), claims_of(run)
    beats = [Heartbeat(run, claims.card) for claims in (one, other)]
    taken = []
    for claims in (one, other, one, other, one):
        is_open = [shard for shard, _, owner in taken if owner is claims]
        got = claims.take(folder, [shard for shard in shards if shard not in is_open])
        if got is not None:
            taken.append((*got, claims))
    assert [number for _, number, _ in taken] == [1, 1, 1, 1]
    assert len({shard for shard, _, _ in taken}) == 4
    for beat in beats:
        beat.end()


RACER = """
import sys
from pathlib import Path
from mathmill.generation.claims import Claims, Heartbeat, this_worker
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import cut
from mathmill.run import Run
run = Run(Path(sys.argv[1])); folder = SetFolder(run.solutions / "toy-test")
card = this_worker(); beat = Heartbeat(run, card); claims = Claims(run, card)
shards = cut(folder.load(), folder.extents())
sys.stdin.readline()
while (taken := claims.take(folder, shards)) is not None:
    print(taken[0].name, taken[1], flush=True)
    shards.remove(taken[0])
sys.stdin.readline()
"""


@pytest.mark.slow
def test_processes_that_race_for_shards_share_them_without_doubles(tmp_path):
    run, folder = run_with(tmp_path, problems_like(160))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    time.sleep(1.5)
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    deadline = time.monotonic() + 60
    while len(list(folder.claims.iterdir())) < 40 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    lines = [line for racer in racers for line in racer.communicate("\n")[0].splitlines()]
    assert len(lines) == 40
    assert len(set(lines)) == 40
    assert all(line.endswith(" 1") for line in lines)


def test_a_holder_that_ended_well_gives_its_shards_back(made):
    run, folder, shards = made
    one, other = claims_of(run), claims_of(run)
    beat = Heartbeat(run, one.card)
    shard, _ = one.take(folder, shards)
    beat.end()
    assert other.take(folder, [shard]) == (shard, 2)


def test_a_holder_whose_heart_stopped_is_followed_after_the_lease_and_not_before(made):
    run, folder, shards = made
    far = claims_of(run, host="elsewhere")
    beat = Heartbeat(run, far.card, beat_s=1000)
    shard, _ = far.take(folder, shards)
    here = claims_of(run)
    assert here.take(folder, [shard]) is None
    assert here.others_may_be_gone(folder, [shard])
    os.utime(beat.path, (time.time() - 5, time.time() - 5))
    assert here.take(folder, [shard]) == (shard, 2)
    beat.end()


def test_a_holder_that_beats_while_watched_is_not_waited_for(made):
    run, folder, shards = made
    far = claims_of(run, host="elsewhere")
    beat = Heartbeat(run, far.card, beat_s=0.05)
    shard, _ = far.take(folder, shards)
    here = claims_of(run)
    assert here.others_may_be_gone(folder, [shard])
    time.sleep(0.3)
    assert not here.others_may_be_gone(folder, [shard])
    beat.end()


def test_an_earlier_attempt_of_the_same_task_is_known_to_be_dead(made):
    run, folder, shards = made
    before = claims_of(run, job="7_3", restart=0, host="elsewhere")
    beat = Heartbeat(run, before.card)
    shard, _ = before.take(folder, shards)
    assert claims_of(run, job="7_4", restart=1).take(folder, [shard]) is None
    assert claims_of(run, job="7_3", restart=1).take(folder, [shard]) == (shard, 2)
    beat.end()


def test_a_process_of_this_machine_that_is_no_more_is_followed_at_once(made):
    run, folder, shards = made
    child = subprocess.Popen(["true"])
    child.wait()
    dead = claims_of(run, pid=child.pid)
    beat = Heartbeat(run, dead.card)
    shard, _ = dead.take(folder, shards)
    assert claims_of(run).take(folder, [shard]) == (shard, 2)
    beat.end()


def test_a_claim_of_our_own_that_we_never_heard_of_is_followed_by_us(made):
    run, folder, shards = made
    one = claims_of(run)
    beat = Heartbeat(run, one.card)
    (folder.claims / f"{shards[0].name}.1").write_text(one.card.name)  # linked, and the answer of the link was lost
    assert one.take(folder, shards[:1]) == (shards[0], 2)
    beat.end()
