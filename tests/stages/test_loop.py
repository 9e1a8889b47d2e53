"""A recipe with students for real: solutions, training sets, trainings, exports, evaluations and a report, here and on Slurm."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.stages.test_main_job import REPO, pipeline, slurm_cluster

RUN = Path("runs/tiny-words")
LABELS = ["selected-seed0", "unselected-seed0"]


def tiny_recipe(**students: object) -> str:
    """The shipped recipe, of a few problems, samples and steps; its path."""
    recipe = yaml.safe_load((REPO / "recipes" / "quickstart.yaml").read_text())
    for name, split, count in (("practice", "practice", 16), ("test", "test", 8)):
        lines = (REPO / "problems" / "words" / f"{split}.jsonl").read_text().splitlines()[:count]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    benchmark = {"title": "eight", "problems": str(Path("test.jsonl").resolve()), "size": 8, "licence": "Apache-2.0"}
    Path("eight.yaml").write_text(yaml.safe_dump(benchmark))
    recipe["problems"] = {"practice": str(Path("practice.jsonl").resolve())}
    for one in recipe["training_sets"].values():
        one["choice"]["num_samples"] = 16
    recipe["students"]["seeds"] = [0]
    recipe["students"]["options"] |= {
        "steps": 4,
        "global_batch": 4,
        "micro_batch": 2,
        "pipeline_parallel": 1,
        "log_every": 1,
    }
    recipe["students"]["options"] |= dict(students.pop("options", {}))
    recipe["students"] |= students
    recipe["evaluation"]["benchmarks"] = str(Path("eight.yaml").resolve())
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    return "tiny.yaml"


def assert_whole() -> list[dict]:
    for label in LABELS:
        assert json.loads((RUN / "training" / label / "finished.json").read_text()) == {"steps": 4}
        assert (RUN / "exported" / label / "model.safetensors").exists()
    page = (RUN / "reports" / "students" / "index.html").read_text()
    assert "Students, before and after" in page and "this one student trained on selected" in page
    lines = json.loads((RUN / "reports" / "students" / "students.json").read_text())["lines"]
    assert {line["benchmark"] for line in lines} == {"eight"}
    assert [line["group"] for line in lines] == ["base", "selected", "unselected"]
    assert all(line["num_problems"] == 8 and line["share"][1] <= line["share"][0] <= line["share"][2] for line in lines)
    assert lines[1]["less_control"] and lines[1]["less_base"] and lines[2]["less_control"] is None
    return lines


@pytest.mark.slow
def test_the_loop_runs_whole_on_a_real_slurm_and_the_second_run_does_nothing(workdir, slurm):
    flags = [tiny_recipe(), "--cluster", slurm_cluster("test"), "--model", "words"]
    pipeline("run_recipe", *flags)
    submitted = [json.loads(line) for line in (RUN / "jobs" / "submitted.jsonl").read_text().splitlines()]
    ids = {each["name"]: each["job_id"] for each in submitted}
    waits = {
        each["name"]: (RUN / "jobs" / each["script"]).read_text().partition("afterany:")[2].split("\n")[0]
        for each in submitted
    }
    assert waits["evaluation-base"] == waits["samples"] == ""
    assert waits["data"] == ids["samples"]
    assert {waits[f"training-{label}"] for label in LABELS} == {ids["data"]}
    assert waits["export"].split(":") == [ids[f"training-{label}"] for label in LABELS]
    assert waits["report"].split(":") == [ids["evaluation-base"], *(ids[f"evaluation-{label}"] for label in LABELS)]
    meanwhile = pipeline("run_recipe", *flags)
    assert "nothing was submitted" in meanwhile.stderr
    slurm.states(ids["report"], timeout=550)
    assert_whole()
    again = pipeline("run_recipe", *flags)
    assert "is finished; nothing to do" in again.stderr and "reports/students/index.html" in again.stderr
    assert len((RUN / "jobs" / "submitted.jsonl").read_text().splitlines()) == len(submitted)
    changes: dict[str, dict] = {
        "another steps": {"options": {"steps": 5}},
        "another model": {"model": "words"},
        "another selected": {},
    }
    for said, change in changes.items():
        tiny_recipe(**change)
        if said == "another selected":
            Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().replace("num_samples: 16", "num_samples: 15"))
        done = pipeline("run_recipe", *flags, check=False)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    tiny_recipe(seeds=[0, 10])
    more = pipeline("run_recipe", *flags, "--show").stderr
    assert "2 of 4 models" in more and "0 of 1 report" in more


@pytest.mark.parametrize(("change", "said"), [
    ({"training_sets": ["selectd"]}, "did you mean 'selected'?"),
    ({"seeds": [1, 1]}, "students.seeds must be different ones"),
    ({"training_sets": []}, "students.training_sets must be different ones"),
    ({"options": {"seed": 1}}, "say students.seeds instead"),
    ({"model": "nobody"}, "no model 'nobody'"),
    ({"options": {"stepz": 4}}, "no key 'stepz'"),
    ({"options": {"epochs": 1}}, "say steps instead"),
    ({"options": {"steps": "four"}}, "students.options.steps"),
    ({"options": {"steps": 4, "tensor_parallel": 4}}, "does not divide"),
])  # fmt: skip
@pytest.mark.slow
def test_a_mistake_about_students_is_one_line_before_anything_is_made(change, said, workdir):
    done = pipeline("run_recipe", tiny_recipe(**change), check=False)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not Path("runs").exists()


@pytest.mark.trial
def test_killed_at_random_and_repeated_the_loop_ends_the_same(workdir):
    command = [sys.executable, str(REPO / "pipeline" / "run_recipe.py"), tiny_recipe()]
    subprocess.run([*command, "--run", "undisturbed"], check=True, capture_output=True)
    undisturbed = json.loads(Path("runs/undisturbed/reports/students/students.json").read_text())["lines"]
    chance, kills = random.Random(1), 0
    while True:
        with open("loop.log", "ab") as log:
            loop = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            if loop.wait(timeout=chance.uniform(5, 60)) == 0:
                break
        except subprocess.TimeoutExpired:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()
            kills += 1
            time.sleep(2)  # its children end by themselves
    lines = assert_whole()
    print(
        f"{kills} kills; {sum(a == b for a, b in zip(lines, undisturbed, strict=True))} of {len(lines)} lines the same"
    )
    assert kills >= 3 and lines == undisturbed
