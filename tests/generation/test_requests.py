"""What a server is asked: the same samples by the same requests, whatever the number of jobs, the shards or the restarts; and
what becomes of rows that no server will make."""

import contextlib
import json
import signal
from collections import Counter

import pytest

from mathmill.generation.parts import reopen, set_aside_by
from mathmill.generation.progress import set_progress
from mathmill.generation.shards import left, shard_of
from mathmill.generation.summary import solutions
from mathmill.generation.verify import verify_set
from tests.generation.test_worker import all_keys, keys_of, stage, wait_until

pytestmark = pytest.mark.slow


def requests_of(folder) -> Counter[str]:
    """The samples' requests as they came in, without the probes at a worker's start."""
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return Counter(line for line in lines if json.loads(line)["prompt"] != "The")


def test_the_requests_are_the_same_for_any_number_of_jobs_any_shards_and_any_restarts(tmp_path):
    one_job, killed = tmp_path / "one", tmp_path / "killed"
    one_job.mkdir(), killed.mkdir()
    with stage(one_job, num_problems=24, log=True) as (_, worker):
        with worker() as alone:
            assert alone.wait() == 0
    with stage(killed, num_problems=24, log=True, delay_s=0.15, problems_per_shard=3, samples_per_shard=1) as (
        folder,
        worker,
    ):
        with worker(0, 2) as first, worker(1, 2) as second:
            wait_until(lambda: set_progress(folder).num_in_parts + set_progress(folder).num_done >= 6, 60)
            first.send_signal(signal.SIGKILL)
            second.send_signal(signal.SIGTERM)
            first.wait(), second.wait()
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(worker(task, 3)) for task in range(3)]
            assert [each.wait() for each in workers] == [0, 0, 0]
    once, again = requests_of(one_job), requests_of(killed)
    assert set(once.values()) == {1} and len(once) == 24 * 2 * 2  # two rounds a sample
    assert set(again) == set(once)


def test_poisoned_rows_end_in_quarantine_all_and_only_they_and_can_be_asked_for_again(tmp_path):
    poisons = {17: "too_long", 101: "refused", 199: "garbage"}
    with stage(tmp_path, num_problems=300, num_samples=1, poisons=poisons, problems_per_shard=16) as (folder, worker):
        with worker() as first:
            said = first.communicate()[1]
        assert first.returncode == 0, said
        poisoned = {(f"toy/test/{n}", 0) for n in poisons}
        reasons = {
            (row.problem_id, row.sample_index): row.reason
            for path in folder.quarantine.iterdir()
            for row in set_aside_by(folder, shard_of(path.name))
        }
        assert reasons.keys() == poisoned
        assert "maximum context length" in reasons["toy/test/17", 0] and "not for me" in reasons["toy/test/101", 0]
        assert "malformed answer, 8 times while others were answered" in reasons["toy/test/199", 0]
        assert keys_of(folder) == sorted(set(all_keys(300, 1)) - poisoned)
        proof = verify_set(folder, {""})
        assert proof.holds and proof.num_set_aside == 3, proof.lines()

        reopen(folder)
        assert {shard.attempt for shard in left(folder, folder.load())} == {1}
        with worker() as again:
            assert again.wait() == 0
        proof = verify_set(folder, {""})
        assert proof.holds and (proof.num_made, proof.num_set_aside) == (297, 3), proof.lines()
        assert len(list(solutions(folder))) == 297
