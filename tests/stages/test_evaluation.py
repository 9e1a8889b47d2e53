"""One command evaluates, one more prints: here with the bundled model, and recorded models as arrays on a real Slurm."""

import contextlib
import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.evaluation.sets import keep_benchmark
from mathmill.generation.sets import set_folders
from mathmill.launch.cluster import Model
from mathmill.problems.benchmark import load_benchmark
from mathmill.run import Run
from mathmill.stages.evaluation import (
    EvaluationOptions,
    benchmark_words,
    run_evaluation,
    run_name,
    sampling_of,
    wanted_of,
)
from tests.stages.test_main_job import REPO, pipeline, slurm_cluster

# what the authors published (ToRA: metrics beside the outputs; program of thoughts: arXiv 2211.12588, tables 2 and 3), and
# for the systems of the GSM8K paper the labels in the recording itself
PUBLISHED = {
    "tora-70b-v1.0": ("gsm8k", 84.3),
    "tora-code-34b-v1.0": ("gsm8k", 80.7),
    "gsm8k-fewshot": ("gsm8k", 71.6),
    "gsm8k-zeroshot": ("gsm8k", 57.0),
    "svamp-fewshot": ("svamp", 85.2),
    "svamp-zeroshot": ("svamp", 70.8),
    "multiarith-zeroshot": ("multiarith", 92.2),
    "175b_verification": ("gsm8k", 100 * 742 / 1319),
    "175b_finetuning": ("gsm8k", 100 * 458 / 1319),
    "6b_verification": ("gsm8k", 100 * 515 / 1319),
    "6b_finetuning": ("gsm8k", 100 * 286 / 1319),
}
MULTIARITH = """
title: MultiArith
problems: multiarith:test
size: 600
licence: as MAWPS
source:
  url: https://example.org/test.jsonl
  fields: {problem: "{{ problem }}", expected_answer: "{{ expected_answer }}"}
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gsm8k:50,math:50,aime24:256", [("gsm8k", 50), ("math", 50), ("aime24", 256)]),
        ("gsm8k", [("gsm8k", 0)]),
        (" gsm8k , ./a/mine.yaml:4 ", [("gsm8k", 0), ("./a/mine.yaml", 4)]),
    ],
)
def test_benchmarks_are_read_off_one_flag(text, words):
    assert benchmark_words(text) == words


@pytest.mark.parametrize(
    "text", ["", "gsm8k:", "gsm8k:0", "gsm8k:-1", "gsm8k:x", "gsm8k:²", "gsm8k:99999999999", ":5", "gsm8k:4,gsm8k:8"]
)
def test_a_benchmark_that_cannot_be_meant_is_refused(text):
    with pytest.raises(UserError, match="--benchmarks"):
        benchmark_words(text)


def test_settings_are_as_published_and_flags_replace_parts():
    first = sampling_of(EvaluationOptions())
    assert (first.temperature, first.top_p, first.max_code_executions, first.stop_on_code_error) == (
        0.7,
        0.95,
        6,
        False,
    )
    assert (first.output_style, first.max_tokens_per_round, first.max_tokens) == ("omi1", 512, 4096)
    second = sampling_of(EvaluationOptions(settings="openmathinstruct-2", temperature=1.0))
    assert (second.temperature, second.max_tokens, second.max_tokens_per_round) == (1.0, 4096, 4096)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"benchmarks": "gsm8k:4"}, "benchmark gsm8k is not prepared"),
        ({"benchmarks": "nothing"}, "no benchmark 'nothing'"),
        ({"model": "/no/such/folder"}, "no model '/no/such/folder'"),
        ({"temperature": 0.0}, "--temperature"),
        ({"benchmarks": "words", "greedy": False}, "nothing to do"),
        ({"num_problems": 0}, "--num_problems must be at least 1"),
        ({"max_code_executions": 0}, "--max_code_executions must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(options, said, workdir):
    with pytest.raises(UserError, match=said) as told:
        run_evaluation(EvaluationOptions(**options))
    assert "\n" not in str(told.value)
    assert list(workdir.iterdir()) == []


def write_few(**changes: object) -> dict[str, object]:
    """Eight of the bundled problems as a benchmark of one's own, `few.yaml`; its keys."""
    lines = (REPO / "problems" / "words" / "test.jsonl").read_text().splitlines()[:8]
    Path("data/few").mkdir(parents=True, exist_ok=True)
    Path("data/few/test.jsonl").write_text(
        "".join(line.replace('"words","split"', '"few","split"') + "\n" for line in lines)
    )
    reference = {"ours": {"source": "here", "results": {"greedy": {"guessing": "0/8"}}}}
    keys = {"title": "Few", "problems": "few:test", "size": 8, "licence": "ours", "reference": reference, **changes}
    Path("few.yaml").write_text(json.dumps(keys))
    return keys


@pytest.mark.parametrize(("key", "value"), [("problems", "words:test"), ("prompt", "text_only")])
def test_a_benchmark_that_became_another_one_is_refused(key, value, workdir):
    write_few()
    run = Run(Path("runs/few").resolve())
    keep_benchmark(run, "few", load_benchmark("few.yaml")[1], "few.yaml")
    write_few(**{key: value})
    with pytest.raises(UserError, match=f"was started with {key} (few:test|code_sft) of benchmark few, not {value}"):
        run_evaluation(EvaluationOptions(benchmarks="few.yaml", run="few"))


def test_a_benchmark_that_is_read_otherwise_by_now_goes_on_and_is_told(workdir, capsys):
    write_few()
    keep_benchmark(Run(Path("runs/few").resolve()), "few", load_benchmark("few.yaml")[1], "few.yaml")
    write_few(title="A few", policy="strict", prompt="text_only")
    asked = EvaluationOptions(benchmarks="few.yaml", run="few", prompt="code_sft", dry_run=True)
    assert run_evaluation(asked) == 0
    assert "benchmark few has another title, policy than before: as it is now goes" in capsys.readouterr().err


def test_a_few_problems_are_spaced_over_the_benchmark_and_have_a_run_of_their_own(workdir, capsys):
    write_few()
    asked = EvaluationOptions(benchmarks="few.yaml", num_problems=3, dry_run=True)
    assert [one.problem_id[-1] for one in wanted_of(("few.yaml", 0), 3).problems] == ["0", "2", "5"]
    assert run_evaluation(asked) == 0
    said = capsys.readouterr().err
    assert "Few: 3 problems, greedy" in said
    assert "the published Few has 8 problems" in said
    assert run_name(asked, Model(name="m", path="", context_length=None, server="", gpus=0, nodes=1, arguments=[])) == (
        "evaluation-m-omi-1-3-problems"
    )
    assert len(wanted_of(("few.yaml", 0), 100).problems) == 8


@pytest.mark.slow
def test_mistakes_end_with_exit_code_2_and_no_traceback(workdir):
    for script, arguments in [
        ("run_evaluation", ["--benchmarks", "nothing"]),
        ("run_evaluation", ["--model", "/no/such"]),
        ("summarize_results", []),
        ("summarize_results", ["nothing"]),
        ("summarize_results", ["--published", ""]),
        ("judge", []),
    ]:
        done = pipeline(script, *arguments, check=False)
        assert done.returncode == 2, (script, done.stderr)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_bundled_model_is_evaluated_on_a_benchmark_of_ones_own_and_more_samples_keep_the_first(workdir):
    yaml = write_few()
    lines = Path("data/few/test.jsonl").read_text().replace('"few","split"', '"words","split"').splitlines()
    pipeline("run_evaluation", "--benchmarks", "few.yaml:2", "--run", "few")
    unfinished = Run(Path("runs/few").resolve())
    before = hashes(unfinished)
    pipeline("run_evaluation", "--benchmarks", "few.yaml:4", "--run", "few")
    assert before.items() <= hashes(unfinished).items()
    finished = pipeline("run_evaluation", "--benchmarks", "few.yaml:4", "--run", "few")
    assert "is finished; nothing to do" in finished.stderr
    assert "majority@k" in finished.stdout
    shown = pipeline("summarize_results", "few", "--published", "ours")
    assert "guessing" in shown.stdout
    assert Path("runs/few/report/index.html").is_file()
    Path("own.jsonl").write_text("\n".join(lines[:3]) + "\n")  # rows that say words:test, as the shipped benchmark's do
    Path("own.yaml").write_text(json.dumps({**yaml, "title": "Own", "problems": "own.jsonl", "size": 3}))
    both = pipeline("run_evaluation", "--benchmarks", "few.yaml:4,own.yaml", "--run", "few")
    assert "Own" in pipeline("summarize_results", "few").stdout, both.stderr
    other = pipeline("run_evaluation", "--benchmarks", "few.yaml:4", "--run", "few", "--top_p", "0.5", check=False)
    assert (other.returncode, "was started with top_p 0.95" in other.stderr) == (2, True)


def hashes(run: Run) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in set_folders(run)
        for path in folder.folder.glob("p*.jsonl")
    }


@contextlib.contextmanager
def recorded_models(recorded: Path, folder: Path) -> Iterator[str]:
    """URL of a server of all recorded solutions, each system a model by its name."""
    port = folder / "port"
    command = [sys.executable, "-m", "tests.evaluation.recorded_server", recorded, port]
    server = subprocess.Popen(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)})
    try:
        while not port.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}"
    finally:
        server.terminate()
        server.wait()


def prepare(benchmark: str, dev_data: Path) -> str:
    if benchmark != "multiarith":
        pipeline("prepare_data", benchmark, "--source", dev_data / benchmark)
        return benchmark
    with gzip.open(dev_data / "mawps" / "test.jsonl.gz", "rt") as lines:
        rows = [line for line in lines if '"multiarith"' in line]
    Path("test.jsonl").write_text("".join(rows))
    Path("multiarith.yaml").write_text(MULTIARITH)
    pipeline("prepare_data", "multiarith.yaml", "--source", "test.jsonl")
    return "multiarith.yaml"


@pytest.mark.parametrize(
    "model",
    ["tora-70b-v1.0", *(pytest.param(name, marks=pytest.mark.trial) for name in PUBLISHED if name != "tora-70b-v1.0")],
)
def test_a_recorded_model_reaches_its_published_accuracy_as_an_array_on_a_real_slurm(model, workdir, slurm, dev_data):
    benchmark, published = PUBLISHED[model]
    named = prepare(benchmark, dev_data)
    with recorded_models(dev_data / "recorded", workdir) as url:
        flags = ["--benchmarks", named, "--model", model, "--server", "openai", "--server_address", url]
        pipeline("run_evaluation", *flags, "--cluster", slurm_cluster("test"), "--num_jobs", "4", "--run", "recorded")
        [submitted] = map(json.loads, Path("runs/recorded/jobs/submitted.jsonl").read_text().splitlines())
        states = slurm.states(submitted["job_id"], timeout=540)
    assert list(states.values()) == ["COMPLETED"] * 4, states
    pipeline("summarize_results", "recorded")
    with open("runs/recorded/report/results.csv") as stream:
        [row] = [row for row in csv.DictReader(stream) if row["group"] == "all" and row["metric"] == "greedy"]
    accuracy = 100 * float(row["share"])
    print(f"{model} on {benchmark}: {accuracy:.2f}, published {published:.2f}")
    assert abs(accuracy - published) <= 1
    assert Path("runs/recorded/report/index.html").is_file()
