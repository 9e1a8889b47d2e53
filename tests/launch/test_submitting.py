"""Submitting to the real Slurm, and what may go wrong around it: refusals, interruptions, an accounting that is away."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.launch.cluster import Partitions
from mathmill.launch.launching import LaunchOptions, launch
from mathmill.launch.status import cancel_jobs, job_states, live_jobs
from mathmill.launch.submissions import submissions
from mathmill.launch.submit import submit, would_start
from mathmill.run import Run
from mathmill.stages.cancel import CancelOptions, cancel
from tests.launch.toys import MAIN, SLURM, new_run, notes, script_of, toy_job, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def run(tmp_path: Path, slurm: object) -> Run:
    return new_run(tmp_path / "demo")


def test_a_job_submitted_from_within_a_job_is_not_bent_by_it(run: Run, slurm, monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_CPU": "1",
        "SBATCH_PARTITION": "nowhere",
        "SLURM_NTASKS": "9",
    }.items():
        monkeypatch.setenv(name, value)
    job = toy_job()
    [task] = submit(script_of(job, SLURM, run), job, SLURM, run)
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_PARTITION", "SLURM_NTASKS"):
        monkeypatch.delenv(name)

    assert slurm.states(task) == {task: "COMPLETED"}


def test_what_slurm_refuses_is_one_line_that_says_where_to_mend_it(run: Run, slurm):
    cluster = replace(SLURM, partitions=Partitions(cpu="nowhere"))
    script = script_of(toy_job(), cluster, run)

    for attempt in (lambda: submit(script, toy_job(), cluster, run), lambda: would_start(script, cluster)):
        with pytest.raises(UserError, match=r"invalid partition.*; mend test\.yaml"):
            attempt()
    assert submissions(run) == []


def test_slurm_can_be_asked_without_submitting(run: Run, slurm, capsys: pytest.CaptureFixture[str]):
    assert launch([toy_job()], SLURM, run, LaunchOptions(test_only=True), []) == 0

    assert re.search(r"slurm +Job \d+ to start at", capsys.readouterr().err)
    assert submissions(run) == [] and list(run.jobs.iterdir()) == []


def test_a_launch_while_jobs_are_queued_submits_nothing_and_names_them(
    run: Run, slurm, capsys: pytest.CaptureFixture[str]
):
    job = replace(toy_job(tasks=3, directives={"hold": True}), steps=(replace(MAIN, module="mathmill.errors"),))
    assert launch([job], SLURM, run, LaunchOptions(), [("work", "3 rows")]) == 0
    block = capsys.readouterr().err
    array = submissions(run)[0].job_id
    try:
        assert f"job id     {array} (3 tasks: {array}_0 to {array}_2)" in block
        assert f"tail -F {run.logs}/generation.{array}_0.log" in block

        with pytest.raises(UserError, match=rf"generation {array} \(3 pending\).*--add_jobs"):
            launch([job], SLURM, run, LaunchOptions(), [])
        assert len(submissions(run)) == 1

        assert launch([job], SLURM, run, LaunchOptions(add_jobs=True), []) == 0
        assert [line.name for line in submissions(run)] == ["generation", "generation-2"]
        assert (run.jobs / "generation-2.sbatch").exists() and (run.jobs / "generation-2.json").exists()
    finally:
        cancel_jobs(job.submission for job in live_jobs(run))


def test_of_two_jobs_that_need_each_other_none_stays_when_slurm_refuses_one(run: Run, slurm):
    alone = replace(toy_job(directives={"hold": True}), steps=(replace(MAIN, module="mathmill.errors"),))
    refused = replace(alone, name="clients", directives={"partition": "nowhere"})

    with pytest.raises(UserError, match="invalid partition"):
        launch([alone, refused], SLURM, run, LaunchOptions(), [])

    assert [line.name for line in submissions(run)] == ["generation"]
    assert wait_for(lambda: not live_jobs(run))
    assert not (run.jobs / "clients.sbatch").exists()


def test_a_launch_that_is_interrupted_between_two_jobs_leaves_no_servers_without_clients(
    run: Run, slurm, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mathmill.launch.launching._show_submitted", interrupted)
    alone = replace(toy_job(directives={"hold": True}), steps=(replace(MAIN, module="mathmill.errors"),))
    with pytest.raises(KeyboardInterrupt):
        launch([alone, replace(alone, name="clients")], SLURM, run, LaunchOptions(), [])
    assert [line.name for line in submissions(run)] == ["generation"]
    assert wait_for(lambda: not live_jobs(run))


def test_no_state_is_invented_when_sacct_does_not_answer(
    run: Run, slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = toy_job()
    [task] = submit(script_of(job, SLURM, run), job, SLURM, run)
    slurm.states(task)
    conf = re.sub(r"(AccountingStoragePort)=\d+", r"\1=9", Path(slurm.env["SLURM_CONF"]).read_text())
    (tmp_path / "slurm.conf").write_text(conf)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))

    with pytest.raises(UserError, match="sacct does not answer"):
        job_states(run)


def test_a_run_is_cancelled_while_the_accounting_is_away(
    run: Run, slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    job = toy_job()
    [over] = submit(script_of(job, SLURM, run), job, SLURM, run)
    slurm.states(over)
    held = replace(job, directives={"hold": True})
    [waiting] = submit(script_of(held, SLURM, run), held, SLURM, run)
    conf = re.sub(r"(AccountingStoragePort)=\d+", r"\1=9", Path(slurm.env["SLURM_CONF"]).read_text())
    (tmp_path / "slurm.conf").write_text(conf)
    with monkeypatch.context() as away:
        away.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
        assert cancel(CancelOptions(run=str(run.folder))) == 0
    assert "every job is told to end, whatever its state: sacct does not answer" in capsys.readouterr().out
    assert wait_for(lambda: not live_jobs(run))
    assert slurm.states(waiting)[waiting].startswith("CANCELLED")


def test_a_job_that_its_launch_did_not_live_to_note_ends_by_itself(run: Run, slurm):
    job = toy_job(tasks=2)
    script = script_of(job, SLURM, run)
    text = script.read_text()
    assert "tries < 90" in text
    script.write_text(text.replace("tries < 90", "tries < 2"))
    array = slurm.call("sbatch", "--parsable", script).strip()
    states = {state.split()[0] for state in slurm.states(array).values()}  # CANCELLED by 1000
    assert "FAILED" in states and states <= {"FAILED", "CANCELLED"}
    log = (run.logs / f"generation.{array}_0.log").read_text()
    assert "is not in jobs/submitted.jsonl: its launch was killed" in log
    assert notes(run) == {}


def test_of_a_job_that_cannot_be_noted_nothing_stays(run: Run, slurm, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "submitted.jsonl")

    monkeypatch.setattr("mathmill.launch.submit.append_submission", full)
    job = replace(toy_job(directives={"hold": True}), steps=(replace(MAIN, module="mathmill.errors"),))
    before = slurm.call("squeue", "--noheader", "--me", "--format=%i")
    with pytest.raises(OSError, match="No space left"):
        launch([job], SLURM, run, LaunchOptions(), [])
    assert not list(run.jobs.glob("*.sbatch")) and not list(run.jobs.glob("*.json"))
    assert wait_for(
        lambda: set(slurm.call("squeue", "--noheader", "--me", "--format=%i").split()) <= set(before.split())
    )
