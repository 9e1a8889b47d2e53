"""A shared server: real processes that beat, drain, end when told and say why they are gone."""

import json
import os
import signal
import time

import pytest

from mathmill.serving.address import Address, write_address
from mathmill.serving.shared import announced, clock_of, gone_servers, launches_of
from tests.serving.test_start import Step, ask, children, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def step(tmp_path, model_folder):
    pool = {"pool": "tiny", "drain_s": 0.3}
    return Step(
        tmp_path,
        {"kind": "bundled", "model": str(model_folder), "served_name": "tiny", "host": "127.0.0.1", **pool},
    )


def gone(step):
    return json.loads((step.run / "servers" / "77.gone").read_text())["reason"]


def test_it_is_announced_for_all_and_beats(step, monkeypatch):
    with step.start() as process:
        address = step.wait_ready(process)
        assert address.pool == "tiny"
        [(found, age)] = announced(step.run / "servers", "tiny").values()
        assert found == address and age < 10
        assert not announced(step.run / "servers", "another")
        long_ago = time.time() - 1000
        os.utime(step.address, (long_ago, long_ago))
        wait_until(lambda: clock_of(step.run) - step.address.stat().st_mtime < 10)
        step.address.unlink()
        wait_until(step.address.exists)


def test_it_ends_in_order_when_its_launch_has_nothing_left_to_do(step):
    with step.start() as process:
        step.wait_ready(process)
        (step.run / "servers" / "job.ended").touch()
        begin = time.monotonic()
        assert process.wait(10) == 0
        print(f"ended after {time.monotonic() - begin:.1f} s")
        assert not step.address.exists() and not (step.run / "servers" / "77.gone").exists()
    with step.start() as late:
        assert late.wait(10) == 0, "one that waited in the queue loads no weights"
    assert not step.address.exists()


def test_before_its_limit_it_withdraws_lets_what_is_in_flight_finish_and_queues_again(step):
    step.options["drain_s"] = 1.5
    with step.start() as process:
        address = step.wait_ready(process)
        for pid in (process.pid, *children(process.pid)):  # as Slurm does: to all processes of the step
            os.kill(pid, signal.SIGUSR2)
        wait_until(lambda: not step.address.exists())
        body = {"model": address.model, "prompt": "Tom", "max_tokens": 2}
        assert ask(address, "/v1/completions", body, address.token) == 200
        assert process.wait(10) == 75
        assert not (step.run / "servers" / "77.gone").exists()


def test_one_that_dies_says_why_it_does_not_come_back_and_one_that_is_told_says_nothing(step):
    with step.start() as process:
        step.wait_ready(process)
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert process.wait(5) == 128 + signal.SIGKILL
    assert gone(step) == "the server ended with exit code 137"
    with step.start() as again:
        step.wait_ready(again)
        assert not (step.run / "servers" / "77.gone").exists()
        again.terminate()  # preempted, or cancelled
        again.wait(5)
    assert not (step.run / "servers" / "77.gone").exists()
    step.options["arguments"] = ["--no_such_option"]
    with step.start() as broken:
        assert broken.wait(10) == 2
    assert gone(step) == "the server ended with exit code 2 before it was ready"
    [told] = gone_servers(step.run / "servers", "tiny").values()
    assert told.log.endswith("logs/job.77.log")


def test_one_that_nobody_comes_to_ends_and_one_with_a_worker_stays(step):
    step.options["idle_minutes"] = 0.05
    workers = step.run / "workers"
    workers.mkdir()
    with step.start() as process:
        step.wait_ready(process)
        assert not (step.run / "progress" / "77").exists()
        for _ in range(12):
            (workers / "somebody").touch()
            time.sleep(0.5)
        assert process.poll() is None
        assert (step.run / "progress" / "77").read_text() == "0\n"  # this start was of use
        (workers / "somebody").unlink()
        assert process.wait(15) == 0
    assert "no worker of the run lived for 0.05 minutes" in gone(step)


def test_one_whose_starts_were_of_no_use_gives_up_before_it_loads_anything_and_says_so(step):
    step.options["max_idle_starts"] = 2
    with step.start(MATHMILL_RESTART="2") as process:  # neither of two was ready while a worker lived
        assert process.wait(10) == 1
    assert "2 starts in a row were of no use" in gone(step)
    (step.run / "progress").mkdir()
    (step.run / "progress" / "77").write_text("1\n")
    with step.start(MATHMILL_RESTART="2") as process:
        step.wait_ready(process)
        assert not (step.run / "servers" / "77.gone").exists()
        process.terminate()


def test_garbage_among_the_files_is_passed_over(tmp_path):
    write_address(tmp_path / "1.json", Address(url="http://a", kind="vllm", model="m", pool="tiny"))
    (tmp_path / "2.json").write_text("{")
    (tmp_path / "3.json").write_text('{"url": 1}')
    (tmp_path / "1.gone").write_text("")
    (tmp_path / "2.gone").write_text('{"pool": "tiny"}')
    (tmp_path / "jobs").mkdir()
    for name, text in {"a": "[]", "b": "{", "c": '{"server": {"pool": "tiny"}}', "d": '{"server": null}'}.items():
        (tmp_path / "jobs" / f"{name}.json").write_text(text)
    lines = [f'{{"name":"{name}"}}' for name in ("a", "b", "c", "d", "lost")]
    (tmp_path / "jobs" / "submitted.jsonl").write_text("\n".join([*lines, "[]", "{", '{"name":']))
    assert list(announced(tmp_path, "tiny")) == ["1"]
    assert gone_servers(tmp_path) == {}
    assert dict(launches_of(tmp_path / "jobs", "tiny")) == {"c": 1}
    (tmp_path / "jobs" / "never-submitted.json").write_text('{"server": {"pool": "tiny"}}')
    assert dict(launches_of(tmp_path / "jobs", "tiny")) == {"c": 1}
