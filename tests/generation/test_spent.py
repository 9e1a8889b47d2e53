"""Where time went, from the lines that servers and workers wrote: every second of an allocation has one name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathmill.generation.spent import (
    PARTS,
    ServerRecord,
    WorkerRecord,
    added,
    server_records,
    spent_by_server,
    spent_by_worker,
    worker_records,
)
from mathmill.generation.times import Gauge, Times, TimesLine
from mathmill.run import Run


def line(at, phase, at_server=0.0, code=0.0, busy=0.0, **more):
    sums = {"generation_s": at_server, "grading_s": 0.0, "num_rows": 0, "num_tokens": 0} | more
    return TimesLine(at=at, phase=phase, at_server_s=at_server, code_s=code, busy_s=busy, **sums)


WORKER = WorkerRecord(
    "7_0",
    0,
    [
        line(110, "start"),
        line(120, "start"),
        line(150, "work", at_server=3000, code=1000, busy=25, servers={"8_0": 25.0}),
        line(160, "work", at_server=3600, code=1200, busy=35, servers={"8_0": 35.0}),
        line(170, "tail", at_server=3610, code=1200, busy=45, servers={"8_0": 45.0}),
    ],
)


def test_a_worker_with_its_own_server_is_divided_into_start_work_tail_and_end():
    spent = spent_by_worker(WORKER, begun=100, ended=173, has_server=True)
    assert spent.parts == pytest.approx(
        {"server start": 20, "generation": 30, "code": 10, "grading": 0, "waiting": 0, "tail": 10, "end": 3}
    )
    assert (spent.wall_s, spent.busy_s) == (73, 45)


def test_a_shared_server_is_busy_with_what_workers_had_there():
    server = ServerRecord("8_0", 0, {"started": 101, "ready": 115, "ended": 171})
    spent = spent_by_server(server, [WORKER], begun=100, ended=172)
    assert spent.parts == pytest.approx(
        {"server start": 15, "generation": 35, "code": 0, "grading": 0, "waiting": 10, "tail": 11, "end": 1}
    )
    whole = added([spent, spent_by_worker(WORKER, 100, 173, has_server=False)])
    assert (whole.wall_s, whole.busy_s) == (72 + 73, 45)


def test_a_server_that_never_got_ready_only_started():
    spent = spent_by_server(ServerRecord("8_0", 0, {"started": 101, "ended": 130}), [], begun=100, ended=131)
    assert spent.parts == dict.fromkeys(PARTS, 0.0) | {"server start": 30, "end": 1}


@given(st.lists(st.sampled_from(["start", "work", "tail"]), min_size=1, max_size=12), st.integers(0, 50))
def test_parts_are_never_negative_and_add_up_to_the_allocation(phases, before):
    order = sorted(phases, key=["start", "work", "tail"].index)
    lines = [line(100 + 3 * n, phase, at_server=float(n), code=n / 2, busy=float(n)) for n, phase in enumerate(order)]
    spent = spent_by_worker(WorkerRecord("7", 0, lines), 100 - before, lines[-1].at + 2, has_server=True)
    assert min(spent.parts.values()) >= 0
    assert spent.wall_s == pytest.approx(before + lines[-1].at - 100 + 2)


def test_what_was_written_is_read_back_and_a_torn_line_is_passed_over(tmp_path):
    run, times = Run(tmp_path), Times()
    times.write_to(run.times / "7_3.2.worker.jsonl", lambda: (5, {"8_0": 1.0}))
    times.go_on(True)
    times.num_rows = 4
    times.note()
    with (run.times / "7_3.2.worker.jsonl").open("a") as stream:
        stream.write('{"at": 1')
    (run.times / "8_0.0.server.jsonl").write_text('{"event": "ready", "at": 5}\n{"event": "en')
    [record] = worker_records(run)
    assert (record.job, record.restart, [one.phase for one in record.lines]) == ("7_3", 2, ["start", "start", "work"])
    assert (record.lines[-1].num_rows, record.lines[-1].servers) == (4, {"8_0": 1.0})
    assert server_records(run)["8_0", 0].events == {"ready": 5}
    assert json.loads((run.times / "7_3.2.worker.jsonl").read_text().splitlines()[0])["phase"] == "start"


def test_a_gauge_adds_up_what_is_under_way_here_and_in_the_whole(monkeypatch):
    monkeypatch.setattr("mathmill.generation.times.time.monotonic", lambda: clock[0])
    clock = [0.0]
    whole = Gauge()
    first, second = Gauge(whole), Gauge(whole)
    with first:
        clock[0] = 2.0
        with second:
            clock[0] = 5.0
    clock[0] = 9.0
    assert (first.sum_s(), second.sum_s(), whole.sum_s()) == (5, 3, 8)
    assert (first.busy_s(), second.busy_s(), whole.busy_s(), whole.most) == (5, 3, 5, 2)
