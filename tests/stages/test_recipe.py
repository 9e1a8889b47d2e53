"""A recipe for real: whole with the bundled model, here and on a real Slurm; again it does nothing."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.launch.job import Job, Step
from mathmill.recipes import load_recipe, some_of
from mathmill.records import Problem
from tests.stages.test_main_job import pipeline, slurm_cluster

SCALE = ["--scale", "0.0003"]
RUN = Path("runs/openmathinstruct-1-words-0.0003")


def assert_whole(run: Path) -> None:
    explained = [json.loads(line) for path in (run / "masks").glob("masks-*[a-z].jsonl") if "problems" not in path.name
                 for line in path.read_text().splitlines()]  # fmt: skip
    assert explained and all(each["kind"] in ("selected", "none") for each in explained)
    kept = {name: (run / "data" / name / "train.jsonl").read_text().splitlines() for name in ("gsm8k", "math", "all")}
    assert kept["gsm8k"] and kept["math"]
    assert sorted(kept["all"]) == sorted({*kept["gsm8k"], *kept["math"]})
    rows = [json.loads(line) for line in kept["all"]]
    assert all(each["is_correct"] and each["generated_solution"].count("\\boxed") == 1 for each in rows)
    assert (run / "reports" / "coverage.png").read_bytes().startswith(b"\x89PNG")
    table = (run / "reports" / "coverage.md").read_text()
    assert re.findall(r"^\| math \| ([^|]+) \|", table, re.M) == [
        "Default",
        "Subj",
        "Default + Subj",
        "Mask-Text",
        "Mask-Text + Subj",
        "total",
    ]


@pytest.mark.slow
def test_the_recipe_runs_whole_here_and_the_second_run_does_nothing(workdir):
    pipeline("run_recipe", *SCALE)
    assert_whole(RUN)
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    again = pipeline("run_recipe", *SCALE)
    assert "is finished; nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_the_recipe_runs_whole_on_a_real_slurm_in_a_few_sbatch_calls(workdir, slurm):
    flags = [*SCALE, "--cluster", slurm_cluster("test"), "--model", "words", "--num_jobs", "2"]
    pipeline("run_recipe", *flags)
    submitted = [json.loads(line) for line in (RUN / "jobs" / "submitted.jsonl").read_text().splitlines()]
    assert [each["name"] for each in submitted] == ["samples", "masks", "masked-samples", "data"]
    for earlier, later in itertools.pairwise(submitted):
        script = (RUN / "jobs" / later["script"]).read_text()
        assert f"#SBATCH --dependency=afterany:{earlier['job_id']}\n" in script
    queued = pipeline("run_recipe", *flags, "--show")
    assert f"job {submitted[-1]['job_id']}" in queued.stderr
    meanwhile = pipeline("run_recipe", *flags)
    assert "nothing was submitted" in meanwhile.stderr
    slurm.states(submitted[-1]["job_id"], timeout=500)
    assert_whole(RUN)
    again = pipeline("run_recipe", *flags)
    assert "is finished; nothing to do" in again.stderr
    assert len((RUN / "jobs" / "submitted.jsonl").read_text().splitlines()) == 4


def test_a_stage_whose_input_is_not_whole_says_so_and_makes_nothing(workdir, monkeypatch):
    from mathmill.run import Run
    from mathmill.selection.work import MaskWork, Work, do

    with pytest.raises(UserError, match="has no set masks-gsm8k"):
        do(Work(masks=[MaskWork(candidates="masks-gsm8k")]), Run(workdir / "runs" / "empty"))
    assert not (workdir / "runs").exists()


def test_the_recipe_has_the_published_numbers():
    recipe = load_recipe("openmathinstruct-1")
    rows = {"gsm8k": 0, "math": 0}
    for one in [*recipe.samples.values(), *recipe.masked_samples.values()]:
        rows[one.problems] += one.num_samples
    assert rows == {"gsm8k": 256, "math": 896}
    assert recipe.training_sets["gsm8k"].choice == {"num_samples": 512_000, "downsample": "fair"}
    assert recipe.training_sets["math"].choice == {"code_preference": "any_code"}
    assert len(recipe.samples) == len(recipe.masked_samples) == 2 + 7 or len(recipe.masked_samples) == 9


@pytest.mark.slow
def test_a_recipe_on_a_real_cluster_is_planned_in_four_jobs(workdir):
    for name in ("gsm8k", "math"):
        folder = workdir / "data" / name
        folder.mkdir(parents=True)
        rows = [{"problem": f"{name} {n}?", "expected_answer": "1", "reference_solution": "so 1"} for n in range(40)]
        (folder / "train_full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--cluster", "selene", "--scale", "0.25", "--num_jobs", "128", "--dry_run"]
    done = pipeline("run_recipe", *flags)
    assert done.stdout.count("#!/bin/bash") == 4
    assert done.stdout.count("--dependency=afterany:ID-of-") == 3
    assert "GPU hours" in done.stderr and "20 sample sets, 3 training sets" in done.stderr
    assert "--array=0-127" in done.stdout
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize(("change", "said"), [
    ("s/problems: gsm8k, prompt: mask/problems: gsm9k, prompt: mask/", "did you mean 'gsm8k'?"),
    ("s/masks: masks-math/masks: masks-maths/", "did you mean 'masks-math'?"),
    ("s/training_sets: .gsm8k, math./training_sets: [gsm, math]/", "did you mean 'gsm8k'?"),
    ("s/^sampling:/samplings:/", "samplings"),
    ("s/num_samples: 512000/num_sample: 512000/", "no option 'num_sample'"),
    ("s/^model: .*/model: [/", "no yaml"),
    ("s/^  temperature:/  temprature: 1\\n  temperature:/", "did you mean 'temperature'?"),
    ("s/^  top_p: .*/  top_p: 0/", "sampling.top_p must be above 0 and at most 1, not 0"),
    ("s/^  temperature: .*/  temperature: 0/", "would make 8 equal solutions in set masks-gsm8k"),
    ("s/prompt: mask_base@competition_code, num_samples: 8/prompt: mask_base@competition_code, num_samples: 0/", "num_samples"),
])  # fmt: skip
@pytest.mark.slow
def test_a_mistake_in_a_recipe_is_one_line(change, said, workdir, repo):
    text = (repo / "recipes" / "openmathinstruct-1.yaml").read_text()
    Path("mine.yaml").write_text(subprocess.run(["sed", change], input=text, capture_output=True, text=True).stdout)
    done = pipeline("run_recipe", "mine.yaml", check=False)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
    assert not Path("runs").exists()


def test_problems_are_thinned_at_even_distances():
    problems = [
        Problem(problem_id=str(n), problem="q", expected_answer="1", dataset="d", split="s") for n in range(100)
    ]
    assert [one.problem_id for one in some_of(problems, 0.01)] == [str(10 * n) for n in range(10)]
    assert len(some_of(problems, 1e-9)) == 1 and some_of(problems, 1.0) == problems


def test_a_job_without_gpus_goes_to_the_cpu_partition_with_the_cpus_it_wants(repo):
    from mathmill.launch.cluster import load_cluster
    from mathmill.launch.render import directives_of
    from mathmill.run import Run

    step = Step(name="selection", role="client", module="mathmill.selection", main=True)
    cluster = load_cluster("selene")
    flags = directives_of(Job(name="data", steps=(step,), cpus=16), cluster, Run(Path("/runs/x")))
    assert flags["partition"] == cluster.partitions.cpu and flags["cpus-per-task"] == 16
    assert directives_of(Job(name="data", steps=(step,)), cluster, Run(Path("/runs/x")))["cpus-per-task"] == 4
