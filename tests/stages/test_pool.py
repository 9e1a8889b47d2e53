"""Servers as a pool on the real Slurm: killed, preempted, replaced; every row once, and the last row ends them all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from mathmill.generation.progress import progress
from mathmill.generation.sets import Sampling
from mathmill.launch.launching import cluster_for
from mathmill.launch.status import cancel_jobs, live_jobs
from mathmill.launch.submissions import submissions
from mathmill.problems import load_problems
from mathmill.prompts import load_prompt
from mathmill.run import Run
from mathmill.serving.address import read_address
from mathmill.stages.sampling import SamplingOptions, launch_sets, model_of, plan_set
from tests.launch.toys import wait_for
from tests.stages.test_main_job import REPO, pipeline, rows_of, slurm_cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STEADY = REPO / "tests" / "serving" / "steady_server.py"
SAMPLING = Sampling(
    temperature=0.7,
    top_p=0.95,
    max_tokens=256,
    max_tokens_per_round=128,
    max_code_executions=3,
    stop_on_code_error=True,
    output_style="ipython",
    max_output_characters=1000,
    code_timeout_s=10.0,
)


@pytest.fixture
def run(workdir, slurm):
    run = Run((workdir / "runs" / "pool").resolve())
    yield run
    cancel_jobs(job.submission for job in live_jobs(run))


def write_problems(name: str, lines: list[str]) -> str:
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return name


def steady_site(**environment: str) -> str:
    """A cluster file whose model is served by `vllm`, which is a server of steady speed."""
    Path("bin").mkdir()
    Path("bin/vllm").write_text(f"#!{sys.executable}\n{STEADY.read_text()}")
    Path("bin/vllm").chmod(0o755)
    Path("weights").mkdir()
    Path("text.yaml").write_text('description: no code\ntemplate: raw\nuser: "{{problem}}"\n')
    setup = [f"export PATH={Path('bin').resolve()}:$PATH"]
    setup += [f"export {name}={value}" for name, value in environment.items()]
    models = {"steady": {"path": str(Path("weights").resolve()), "server": "vllm", "gpus": 0, "context_length": 4096}}
    return slurm_cluster("steady", setup=setup, models=models)


def ready_servers(run: Run) -> dict[str, str]:
    """Job of every server that is announced, to the name that it serves under."""
    return {path.stem: read_address(path).model for path in run.servers.glob("*.json")}


def kill_server(name: str) -> None:
    """KILL for the very process that serves under this name; its job must not come back."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if name in words and "srun" not in words[0]:
            os.kill(int(folder.name), signal.SIGKILL)
            return
    raise AssertionError(f"no process serves {name}")


def num_settled(run: Run) -> int:
    return sum(one.num_done + one.num_in_parts for one in progress(run))


def all_over(run: Run, slurm, timeout: float = 300) -> dict[str, str]:
    """Task to state of every job of the run, once all are over."""
    return {task: state for line in submissions(run) for task, state in slurm.states(line.job_id, timeout).items()}


def ends_of(run: Run) -> list[int]:
    """When Slurm released each allocation, in seconds since 1970."""
    ids = ",".join(line.job_id for line in submissions(run))
    command = ["sacct", "-nPX", f"--jobs={ids}", "--format=End"]
    told = subprocess.run(command, env={**os.environ, "SLURM_TIME_FORMAT": "%s"}, capture_output=True, text=True)
    return [int(line) for line in told.stdout.split()]


def last_line(path: Path) -> dict:
    return json.loads(path.read_text().splitlines()[-1])


def test_three_sets_load_weights_once_a_server_and_outlive_one_that_is_killed_and_use_its_replacement(run, slurm):
    lines = (REPO / "problems" / "words" / "test.jsonl").read_text().splitlines()
    Path("terse.yaml").write_text(
        (REPO / "prompts" / "code_sft.yaml").read_text().replace("  Problem:", "\n  Problem:")
    )
    wanted = [
        ("one", write_problems("one.jsonl", lines[:60]), "code_sft"),
        ("two", write_problems("two.jsonl", lines[60:120]), "code_sft"),
        ("one-terse", "one.jsonl", "terse.yaml"),
    ]

    def launch(**changes) -> None:
        options = SamplingOptions(cluster=slurm_cluster("test"), server_jobs=2, **changes)
        cluster = cluster_for(options)
        model = model_of(options, cluster)
        planned = [
            plan_set(run, name, load_problems(file), load_prompt(prompt), model, SAMPLING, num_samples=4)
            for name, file, prompt in wanted
        ]
        assert launch_sets(planned, model, cluster, run, options, []) == 0

    launch()
    wait_for(lambda: num_settled(run) >= 20 and len(ready_servers(run)) == 2, 120)
    killed, name = next(iter(ready_servers(run).items()))
    kill_server(name)
    launch(add_jobs=True, client_jobs=0)
    states = all_over(run, slurm)

    assert Counter(states.values()) == {"FAILED": 1, "COMPLETED": 4}, states
    assert states[killed] == "FAILED"
    assert f"exit code {128 + signal.SIGKILL}" in json.loads((run.servers / f"{killed}.gone").read_text())["reason"]
    rows = rows_of(run.folder)
    assert Counter(Counter((row.prompt, row.problem_id, row.sample_index) for row in rows).values()) == {1: 720}
    assert sum(one.num_quarantined for one in progress(run)) == 0
    assert all(row.seed_honoured and row.server_kind == "bundled" for row in rows)

    logs = {path.name: path.read_text() for path in run.logs.glob("servers*.log")}
    assert [log.count("server ready: ") for log in logs.values()] == [1] * 4, "weights are loaded once a server"
    [worker] = run.times.glob("*.worker.jsonl")
    busy_s = last_line(worker)["servers"]
    replacements = {f"{submissions(run)[-1].job_id}_{task}" for task in (0, 1)}
    assert replacements & {job for job, seconds in busy_s.items() if seconds > 0}, "the replacement was used"
    print(
        f"from the last row to the release of the last allocation: {max(ends_of(run)) - last_line(worker)['at']:.1f} s"
    )


def test_a_server_that_never_gets_ready_is_told_by_the_waiting_worker_and_by_status(run, slurm):
    Path("broken").mkdir()
    Path("broken/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    site = slurm_cluster(
        "test", models={"broken": {"path": str(Path("broken").resolve()), "server": "bundled", "context_length": 512}}
    )
    problems = write_problems("few.jsonl", (REPO / "problems/words/test.jsonl").read_text().splitlines()[:4])
    pipeline(
        "run_generation",
        *("--cluster", site, "--model", "broken", "--problems", problems, "--run", "pool", "--server_jobs", "2"),
    )
    states = all_over(run, slurm)

    assert set(states.values()) == {"FAILED"}
    worker = next(run.logs.glob("generation.*[0-9].log")).read_text()
    assert re.search(r"error: all servers are gone: the server ended with exit code \d+ before it was ready", worker)
    assert str(run.logs / "servers.") in worker
    told = pipeline("status", "pool").stdout
    assert "before it was ready" in told and "servers." in told, told


@pytest.mark.trial
def test_throughput_after_the_loss_of_one_server_of_three(run, slurm):
    site = steady_site()
    problems = write_problems(
        "toy.jsonl", [json.dumps({"problem": f"{n}?", "expected_answer": "1"}) for n in range(400)]
    )
    flags = ["--cluster", site, "--model", "steady", "--problems", problems, "--prompt", "text.yaml", "--run", "pool"]
    pipeline("run_generation", *flags, "--num_samples", "10", "--server_jobs", "3")
    wait_for(lambda: len(ready_servers(run)) == 3 and num_settled(run) >= 300, 120)
    whole = rate(run, 15)
    killed, name = next(iter(ready_servers(run).items()))
    kill_server(name)
    wait_for(lambda: (run.servers / f"{killed}.gone").exists())
    after = rate(run, 15)
    print(f"rows/s with three servers {whole:.1f}, after the loss of one {after:.1f}: {after / whole:.3f} of 0.667")
    assert after / whole >= 0.95 * 2 / 3
    states = all_over(run, slurm)
    assert Counter(states.values()) == {"COMPLETED": 3, "FAILED": 1}
    rows = rows_of(run.folder)
    assert len({(row.problem_id, row.sample_index) for row in rows}) == len(rows) == 4000
    assert sum(one.num_quarantined for one in progress(run)) == 0
    released(run)


def rate(run: Run, seconds: float) -> float:
    """Rows settled a second."""
    before, begun = num_settled(run), time.monotonic()
    time.sleep(seconds)
    return (num_settled(run) - before) / (time.monotonic() - begun)


def released(run: Run) -> None:
    """Within 5 s after the last row all allocations are released, by sacct's whole seconds."""
    last_row = max(last_line(path)["at"] for path in run.times.glob("*.worker.jsonl"))
    late_s = max(ends_of(run)) - last_row
    print(f"from the last row to the release of the last allocation: {late_s:.1f} s")
    assert late_s <= 5


@pytest.mark.trial
def test_a_preempted_server_costs_no_row_and_joins_again(run, slurm):
    site = steady_site()
    config = json.loads(Path("cluster_configs/steady.yaml").read_text())
    config["partitions"] = {"gpu": "preempt", "cpu": "batch"}
    config["models"]["steady"]["gpus"] = 1
    Path("cluster_configs/steady.yaml").write_text(json.dumps({**config, "gpus_per_node": 8, "cpus": 16}))
    problems = write_problems(
        "toy.jsonl", [json.dumps({"problem": f"{n}?", "expected_answer": "1"}) for n in range(400)]
    )
    flags = ["--cluster", site, "--model", "steady", "--problems", problems, "--prompt", "text.yaml", "--run", "pool"]
    pipeline("run_generation", *flags, "--num_samples", "10", "--server_jobs", "2", "--yes")
    wait_for(lambda: len(ready_servers(run)) == 2 and num_settled(run) >= 100, 120)
    before = ready_servers(run)
    node = slurm.call("squeue", "--noheader", "--format=%N", f"--jobs={next(iter(before))}").strip()
    slurm.call("srun", "--partition=batch", f"--nodelist={node}", "--gpus-per-node=7", "sleep", "1")
    wait_for(lambda: len(ready_servers(run)) == 2 and ready_servers(run).keys() == before.keys(), 300)
    assert ready_servers(run) != before, "it was loaded anew"
    states = all_over(run, slurm, 600)
    assert set(states.values()) == {"COMPLETED"}
    rows = rows_of(run.folder)
    assert len({(row.problem_id, row.sample_index) for row in rows}) == len(rows) == 4000
    assert sum(one.num_quarantined for one in progress(run)) == 0
    assert {name for row in rows if (name := row.generation.split()[1])} >= set(ready_servers(run).values())
    released(run)


@pytest.mark.trial
def test_fifty_servers_started_at_once_and_every_row_from_its_own(run, slurm):
    site = steady_site(STEADY_SECONDS="0.05")
    config = json.loads(Path("cluster_configs/steady.yaml").read_text())
    Path("cluster_configs/steady.yaml").write_text(json.dumps({**config, "cpus": 1}))  # all 51 fit at once
    problems = write_problems(
        "toy.jsonl", [json.dumps({"problem": f"{n}?", "expected_answer": "1"}) for n in range(500)]
    )
    flags = ["--cluster", site, "--model", "steady", "--problems", problems, "--prompt", "text.yaml", "--run", "pool"]
    pipeline("run_generation", *flags, "--num_samples", "8", "--server_jobs", "50")
    states = all_over(run, slurm, 600)
    assert Counter(states.values()) == {"COMPLETED": 51}, Counter(states.values())
    addresses = [re.search(r"server ready: (\S+) at (\S+)", path.read_text()) for path in run.logs.glob("servers*.log")]
    ready = {match[1]: match[2] for match in addresses if match}
    print(f"{len(ready)} servers were ready at {len(set(ready.values()))} addresses")
    assert len(ready) == len(set(ready.values()))
    rows = rows_of(run.folder)
    assert len({(row.problem_id, row.sample_index) for row in rows}) == len(rows) == 4000
    assert {row.generation.split()[1] for row in rows} <= set(ready)
    assert all(row.generation.split()[3] == str(row.seed) for row in rows)


@pytest.mark.trial
def test_servers_on_two_nodes_each_serve_as_one_and_all_their_tasks_end(run, slurm):
    """The bundled server's first task serves and the others stand by: the shape of such a step, with --mpi=none."""
    words = {"path": str(REPO / "models" / "words"), "server": "bundled", "context_length": 2048, "nodes": 2}
    site = slurm_cluster("test", models={"two": words})
    problems = write_problems("few.jsonl", (REPO / "problems/words/test.jsonl").read_text().splitlines()[:30])
    flags = ["--cluster", site, "--model", "two", "--problems", problems, "--run", "pool", "--num_samples", "2"]
    pipeline("run_generation", *flags, "--server_jobs", "2")
    states = all_over(run, slurm)

    assert Counter(states.values()) == {"COMPLETED": 3}, states
    assert len(rows_of(run.folder)) == 60
    script = (run.jobs / "servers.sbatch").read_text()
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in script and "--mpi=none" in script
    for task in (0, 1):
        job = submissions(run)[0].job_id
        assert (run.logs / f"servers.{job}_{task}.log").read_text().count("server ready: ") == 1
    assert not list(run.servers.glob("*.json"))
    released(run)


@pytest.mark.trial
def test_one_server_to_talk_to_as_a_job_and_ctrl_c_ends_it(run, slurm):
    site = slurm_cluster("test")
    command = [sys.executable, REPO / "pipeline" / "start_server.py", "--cluster", site, "--run", "pool"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPO)}
    ) as talk:
        said = ""
        while "Ctrl-C" not in said.rpartition("end   ")[2]:
            line = talk.stderr.readline()
            assert line, said
            said += line
        curl = next(line for line in said.splitlines() if line.startswith("try it")).removeprefix("try it").strip()
        header = Path(re.search(r"@(\S+)", curl)[1])
        assert header.stat().st_mode & 0o777 == 0o600 and "Bearer" not in said
        node, port = re.search(r"http://(node\d+):(\d+)", curl).groups()
        answer = slurm.call("srun", f"--nodelist={node}", "bash", "-c", curl)  # from a node, where its name resolves
        assert json.loads(answer)["choices"][0]["text"]
        assert f"ssh -N -L 8000:{node}:{port}" in said
        talk.send_signal(signal.SIGINT)
        assert talk.wait(20) == 0
    assert set(all_over(run, slurm).values()) == {"CANCELLED by 0"}
    assert not header.exists()


@pytest.mark.trial
def test_servers_and_workers_at_their_time_limits_go_on_by_themselves(run, slurm):
    site = steady_site(STEADY_SECONDS="0.3")
    config = json.loads(Path("cluster_configs/steady.yaml").read_text())
    Path("cluster_configs/steady.yaml").write_text(json.dumps({**config, "time_limit": "00:02:00"}))
    problems = write_problems(
        "toy.jsonl", [json.dumps({"problem": f"{n}?", "expected_answer": "1"}) for n in range(300)]
    )
    flags = ["--cluster", site, "--model", "steady", "--problems", problems, "--prompt", "text.yaml", "--run", "pool"]
    pipeline("run_generation", *flags, "--num_samples", "12", "--server_jobs", "2")
    states = all_over(run, slurm, 900)
    assert set(states.values()) == {"COMPLETED"}
    rows = rows_of(run.folder)
    assert len({(row.problem_id, row.sample_index) for row in rows}) == len(rows) == 3600
    assert sum(one.num_quarantined for one in progress(run)) == 0
    logs = {path.name: path.read_text() for path in run.logs.glob("servers*.log")}
    assert any("the time limit is near" in log and log.count("server ready: ") > 1 for log in logs.values())
    print(f"servers started {sum(log.count('server ready: ') for log in logs.values())} times")
    released(run)
