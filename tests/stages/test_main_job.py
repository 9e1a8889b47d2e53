"""The main job for real: problems to graded solutions, on this machine and on a real Slurm, and what a dead server says."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mathmill.generation.sets import set_folders
from mathmill.generation.summary import solutions
from mathmill.run import Run

REPO = Path(__file__).parents[2]
REPLAY = REPO / "tests" / "generation" / "replay_server.py"


def pipeline(name: str, *arguments: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """One of the project's scripts, as a user starts it."""
    done = subprocess.run(
        [sys.executable, REPO / "pipeline" / f"{name}.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPO), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def rows_of(run: Path):
    return [row for folder in set_folders(Run(run)) for row in solutions(folder)]


@contextlib.contextmanager
def replaying(recorded: Path, folder: Path):
    """URL of a server that replays recorded solutions."""
    port = folder / "port"
    server = subprocess.Popen([sys.executable, REPLAY, recorded, port])
    try:
        while not port.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_the_bundled_model_solves_bundled_problems_here_and_the_same_command_goes_on(workdir):
    lines = (REPO / "problems" / "words" / "test.jsonl").read_text().splitlines()[:24]
    Path("some.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--problems", "some.jsonl", "--run", "some"]
    first = pipeline("run_generation", *flags, "--num_samples", "2")
    rows = rows_of(Path("runs/some"))
    assert Counter((row.problem_id, row.sample_index) for row in rows) == Counter(
        {(json.loads(line)["problem_id"], sample): 1 for line in lines for sample in (0, 1)}
    )
    assert sum(row.is_correct for row in rows) > len(rows) / 2, first.stderr
    assert all(row.code_blocks and row.seed_honoured and row.server_kind == "bundled" and row.code_sha for row in rows)

    again = pipeline("run_generation", *flags, "--num_samples", "2")
    assert "is finished; nothing to do" in again.stderr
    before = {path: path.stat().st_mtime_ns for path in Path("runs/some/solutions").glob("*/p0*.jsonl")}
    pipeline("run_generation", *flags, "--num_samples", "3", "--num_jobs", "2")
    assert len(rows_of(Path("runs/some"))) == 72
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in Path("runs/some/solutions").glob("*/p0*.jsonl")}.items()
    )
    submitted = [json.loads(line) for line in Path("runs/some/jobs/submitted.jsonl").read_text().splitlines()]
    tasks = [f"local-{task['pid']}-{task['task']}" for line in submitted for task in line["local"]]
    assert len(tasks) == 3
    assert not [task for task in tasks if Path("/tmp", f"mathmill-{task}").exists()]


@pytest.mark.slow
def test_one_seed_makes_the_same_solutions_again(workdir):
    lines = (REPO / "problems" / "words" / "test.jsonl").read_text().splitlines()[:12]
    Path("some.jsonl").write_text("\n".join(lines) + "\n")
    for run in ("one", "other"):
        pipeline(
            "run_generation", "--problems", "some.jsonl", "--run", run, "--num_samples", "2", "--temperature", "1.0"
        )
    texts = [
        {(row.problem_id, row.sample_index): row.generation for row in rows_of(Path("runs", run))}
        for run in ("one", "other")
    ]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_server_that_dies_at_its_start_is_told_within_seconds_with_its_last_words(workdir):
    Path("broken").mkdir()
    Path("broken/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    begun = time.monotonic()
    done = pipeline("run_generation", "--model", "broken", check=False)
    assert done.returncode == 2
    assert time.monotonic() - begun < 10
    assert "server died with exit code" in done.stderr
    assert "Traceback" not in done.stderr
    assert not rows_of(next(Path("runs").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "published"), [("tora-70b-v1.0", 84.3), ("tora-code-34b-v1.0", 80.7)])
def test_recorded_solutions_give_the_published_accuracy(model, published, workdir, dev_data):
    recorded = dev_data / "recorded" / "tora-gsm8k" / f"{model}.jsonl.gz"
    pipeline("prepare_data", "gsm8k", "--source", dev_data / "gsm8k")
    with replaying(recorded, workdir) as url:
        flags = ["--problems", "gsm8k:test", "--num_samples", "1", "--temperature", "0", "--no_stop_on_code_error"]
        pipeline("run_generation", *flags, "--run", "replay", "--server", "openai", "--server_address", url)
    rows = rows_of(Path("runs/replay"))
    assert len(rows) == 1319
    accuracy = 100 * sum(row.is_correct is True for row in rows) / len(rows)
    print(f"{model}: {accuracy:.2f}, published {published}")
    assert abs(accuracy - published) <= 1, accuracy


def slurm_cluster(name: str, **changes) -> str:
    """A cluster file for the test Slurm, in this folder."""
    Path("cluster_configs").mkdir(exist_ok=True)
    site = {
        "executor": "slurm",
        "partitions": {"gpu": "batch", "cpu": "batch"},
        "time_limit": "01:00:00",
        "cpus": 2,
        "python": sys.executable,
    }
    Path("cluster_configs", f"{name}.yaml").write_text(json.dumps({**site, **changes}))
    return name


@pytest.mark.parametrize(
    ("sandbox", "num_problems"),
    [
        ("none", 400),
        ("apptainer", 200),
        pytest.param("none", 1319, marks=pytest.mark.trial),
        pytest.param("apptainer", 1319, marks=pytest.mark.trial),
    ],
)
def test_gsm8k_as_an_array_of_8_on_a_real_slurm(sandbox, num_problems, workdir, slurm, dev_data, request):
    changes, env = {}, {}
    if sandbox == "apptainer":
        apptainer = request.getfixturevalue("apptainer")
        changes, env = {"runtime": {"sandbox": "apptainer"}, "images": {"sandbox": str(apptainer.sif)}}, apptainer.env
        changes["setup"] = [f"export PATH={apptainer.bin}:$PATH"]
    pipeline("prepare_data", "gsm8k", "--source", dev_data / "gsm8k")
    problems = Path("data/gsm8k/test.jsonl").read_text().splitlines()[:num_problems]
    assert len(problems) == num_problems
    Path("gsm8k.jsonl").write_text("\n".join(problems) + "\n")
    flags = [
        "--cluster",
        slurm_cluster("test", **changes),
        "--problems",
        "gsm8k.jsonl",
        "--run",
        "gsm8k",
        "--num_jobs",
        "8",
    ]
    launched = pipeline(
        "run_generation",
        *flags,
        "--num_samples",
        "1",
        "--temperature",
        "0",
        "--max_tokens",
        "96",
        "--no_stop_on_code_error",
        **env,
    )
    submitted = [json.loads(line) for line in Path("runs/gsm8k/jobs/submitted.jsonl").read_text().splitlines()]
    assert len(submitted) == 1
    job = submitted[0]["job_id"]
    states = slurm.states(job, timeout=600)
    logs = Path("runs/gsm8k/logs")
    assert states == {f"{job}_{task}": "COMPLETED" for task in range(8)}, [
        log.read_text()[-2000:] for log in logs.glob("*.log")
    ]
    rows = rows_of(Path("runs/gsm8k"))
    assert Counter(row.problem_id for row in rows) == Counter(json.loads(line)["problem_id"] for line in problems)
    assert any(block.status == "ok" for row in rows for block in row.code_blocks)
    for task in range(8):
        assert (logs / f"generation.{job}_{task}.log").exists(), (launched.stderr, sorted(logs.iterdir()))
    status = pipeline("status", "gsm8k", **env)
    assert "8 completed" in status.stdout
