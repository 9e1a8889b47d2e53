"""The main job's command line: what a user's mistake says, and what a dry run prints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mathmill.options import ended_by, parse
from mathmill.stages.generation import GenerationOptions, run_generation

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "pipeline" / "run_generation.py"


def say(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of run_generation.py with these flags, in this process."""
    with pytest.raises(SystemExit) as ended:
        ended_by(lambda: run_generation(parse(GenerationOptions, list(arguments))))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


MISTAKES = {
    "an unknown cluster": (["--cluster", "selen"], "no cluster config 'selen'. Known: example, local, selene"),
    "an unknown key": (
        ["--cluster", "cluster_configs/typo.yaml"],
        "unknown key 'partitons'; did you mean 'partitions'?",
    ),
    "an unquoted time": (
        ["--cluster", "cluster_configs/time.yaml"],
        'time_limit was read as the number 43200; put quotes around it, as "12:00:00"',
    ),
    "an unknown model": (
        ["--model", "llama-9"],
        "no model 'llama-9' in cluster_configs/local.yaml. Known: student, words",
    ),
    "an unknown prompt": (["--prompt", "code_bas"], "code_base"),
    "a missing prompt field": (
        ["--prompt", "needs_solution.yaml", "--problems", "one.jsonl"],
        "has no reference_solution",
    ),
    "a malformed problem line": (["--problems", "bad.jsonl"], "bad.jsonl:2:"),
    "an unknown benchmark": (["--problems", "gsm9k:test"], "words:test"),
    "no file": (["--problems", "none.jsonl"], "none.jsonl"),
    "an unreachable server": (["--server", "openai", "--server_address", "http://127.0.0.1:9"], "no server answers at"),
    "an unknown server": (["--server", "tgi"], "no server kind 'tgi'. Known: bundled"),
    "an address without openai": (["--server_address", "http://127.0.0.1:9"], "add --server openai"),
    "openai without an address": (["--server", "openai"], "add --server_address"),
    "greedy samples": (["--temperature", "0"], "--temperature 0 would make 4 equal solutions"),
    "no samples": (["--num_samples", "0"], "--num_samples must be at least 1"),
    "a temperature that is no number": (["--temperature", "nan"], "--temperature must be 0 or more"),
    "a run's name with a slash": (["--run", "a/b"], "--run 'a/b': letters, digits"),
    "servers to share here": (["--server_jobs", "2"], "--server_jobs needs a Slurm cluster"),
    "tasks of both kinds": (["--server_jobs", "2", "--num_jobs", "4"], "with --server_jobs say --client_jobs"),
    "clients without servers": (["--client_jobs", "4"], "add --server_jobs N, or say --num_jobs"),
    "a wrong top_p": (["--top_p", "1.5"], "--top_p above 0 and at most 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_what_and_where_and_exit_code_2(mistake, workdir, capsys):
    write("cluster_configs/typo.yaml", "executor: local\npartitons: {gpu: x}\n")
    write("cluster_configs/time.yaml", "executor: local\ntime_limit: 12:00:00\n")
    write("one.jsonl", '{"problem": "1 + 1?", "expected_answer": "2"}\n')
    write("bad.jsonl", '{"problem": "1 + 1?", "expected_answer": "2"}\n{"problem": \n')
    write("needs_solution.yaml", 'description: x\ntemplate: raw\nuser: "{{problem}} {{reference_solution}}"\n')
    flags, told = MISTAKES[mistake]
    code, out, err = say(capsys, *flags)
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    assert not Path("runs").exists()


def test_an_unknown_flag_is_refused_with_the_nearest_one(workdir, capsys):
    code, _, err = say(capsys, "--num_sample", "4")
    assert code == 2
    assert "--num_samples" in err
    assert "Traceback" not in err


def test_a_run_started_with_other_options_names_the_one_that_differs(workdir, capsys, monkeypatch):
    monkeypatch.setattr("mathmill.stages.sampling.launch", lambda *rest, prepare: prepare() or 0)
    assert say(capsys, "--run", "tulip")[0] == 0
    for flags, told in [
        (["--prompt", "code_base"], "was started with prompt code_sft; use another run name, or that prompt"),
        (["--temperature", "1.0"], "was started with temperature 0.7"),
        (["--seed", "5"], "was started with seed 0"),
        (["--max_code_executions", "6"], "was started with max_code_executions 3"),
    ]:
        code, _, err = say(capsys, "--run", "tulip", *flags)
        assert code == 2
        assert f"runs/tulip {told}" in err


def test_fewer_samples_than_there_were_is_no_mistake_and_more_only_add(workdir, capsys, monkeypatch):
    launched = []
    monkeypatch.setattr(
        "mathmill.stages.sampling.launch", lambda *rest, prepare: prepare() or launched.append(rest[-1]) or 0
    )
    for num_samples in (8, 4, 64):
        assert say(capsys, "--num_samples", str(num_samples))[0] == 0
    rows = [dict(lines)["left"].split(" samples")[0] for lines in launched]
    assert rows == ["1,600 of 1,600", "1,600 of 1,600", "12,800 of 12,800"]
    files = sorted(Path("runs").glob("*/solutions/*/samples.*"))
    assert [(path.name, path.read_text()) for path in files] == [("samples.001", "8\n"), ("samples.002", "64\n")]


@pytest.mark.slow
def test_a_dry_run_for_128_tasks_prints_one_array_and_writes_nothing(workdir, capsys):
    code, script, summary = say(capsys, "--cluster", "selene", "--num_jobs", "128", "--dry_run")
    assert code == 0
    assert "#SBATCH --array=0-127" in script
    assert "an array of 128 tasks" in summary
    assert not Path("runs").exists()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stdout


def test_a_mixtral_job_asks_for_what_its_server_needs(workdir, capsys):
    flags = ["--cluster", "selene", "--model", "mixtral-8x7b", "--prompt", "code_base", "--dry_run"]
    code, script, summary = say(capsys, *flags)
    assert code == 0
    assert "GPU hours" in summary
    assert "--container-image" in script
    assert "--gpus-per-node=8" in script or "--gres=gpu:8" in script


@pytest.mark.slow
def test_more_tasks_than_shards_are_not_asked_for(workdir, capsys):
    write("three.jsonl", "".join(json.dumps({"problem": f"{n}?", "expected_answer": "1"}) + "\n" for n in range(3)))
    _, script, _ = say(capsys, "--cluster", "selene", "--num_jobs", "128", "--problems", "three.jsonl", "--dry_run")
    assert "#SBATCH --array=0-11" in script  # 3 problems x 4 samples


@pytest.mark.slow
def test_no_slurm_here_is_said_in_one_line(workdir):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--cluster", "selene", "--yes"],
        env={"PATH": "/usr/bin/none", "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--dry_run" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_shared_servers_are_an_array_of_their_own_and_their_clients_take_no_gpu(workdir, capsys):
    flags = ["--cluster", "selene", "--model", "mixtral-8x7b", "--server_jobs", "16", "--client_jobs", "2", "--dry_run"]
    code, script, _ = say(capsys, *flags)
    assert code == 0
    servers, clients = (f"#!/bin/bash{text}" for text in script.split("#!/bin/bash")[1:])
    assert "#SBATCH --array=0-15" in servers and "--gpus-per-node=8" in servers and "mathmill.serving.start" in servers
    assert "#SBATCH --array=0-1" in clients and "mathmill.generation" in clients and "mathmill.serving" not in clients
    assert "#SBATCH --gpus-per-node" not in clients
    for text in (servers, clients):
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    only = say(capsys, *flags[:-3], "--client_jobs", "0", "--dry_run")[1]
    assert only.count("#!/bin/bash") == 1 and "mathmill.serving.start" in only


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ("trtllm", "--nodes=2 --ntasks=16 --ntasks-per-node=8"),
        ("vllm", "--nodes=2 --ntasks=2 --ntasks-per-node=1"),
        ("sglang", "--nodes=2 --ntasks=2 --ntasks-per-node=1"),
    ],
)
@pytest.mark.slow
def test_shared_servers_of_two_nodes_are_asked_for_with_their_tasks(server, told, workdir, capsys):
    site = {
        "executor": "slurm",
        "time_limit": "12:00:00",
        "gpus_per_node": 8,
        "models": {"large": {"path": "/models/large", "server": server, "context_length": 4096, "nodes": 2}},
    }
    write("cluster_configs/site.yaml", json.dumps(site))
    flags = ["--cluster", "site", "--model", "large", "--server_jobs", "3", "--client_jobs", "0", "--dry_run"]
    code, script, _ = say(capsys, *flags)
    assert code == 0
    assert "#SBATCH --nodes=2" in script and "#SBATCH --array=0-2" in script
    assert told in script
    assert ("--mpi=pmix" if server == "trtllm" else "--mpi=none") in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
