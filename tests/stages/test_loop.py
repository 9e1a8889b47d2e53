"""A recipe with students for real: solutions, training sets, trainings, exports, evaluations and a report, here and on Slurm."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mathmill.errors import UserError
from mathmill.launch.cluster import load_cluster
from mathmill.recipes import load_recipe
from mathmill.stages.recipe_plan import Plan, RunRecipeOptions, plan_recipe
from mathmill.stages.sampling import Work
from mathmill.stages.students import other_prompts, tasks_of_evaluation
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


def planned(monkeypatch: pytest.MonkeyPatch, recipe: str, num_jobs: int = 1, **site: object) -> Plan:
    monkeypatch.chdir(REPO)  # where the clusters are; nothing is written
    options = RunRecipeOptions(model="words", run=f"never-{os.getpid()}", num_jobs=num_jobs)
    return plan_recipe(options, load_recipe(recipe), replace(load_cluster("local"), **site))


def test_students_that_do_not_fit_the_gpus_are_refused_before_anything_is_made(workdir, monkeypatch):
    path = Path(tiny_recipe(options={"device": "cuda", "precision": "bf16"})).resolve()
    fits = planned(monkeypatch, str(path), gpus_per_node=2, gpu_memory_gb=80.0)
    assert fits.students is not None and "% of 80 GB" in fits.students.memory
    with pytest.raises(UserError, match=r"more than the 0\.001 GB of .*; raise tensor_parallel"):
        planned(monkeypatch, str(path), gpus_per_node=2, gpu_memory_gb=0.001)


def test_an_evaluation_has_no_more_tasks_than_fill_its_server_once(monkeypatch):
    tasks = {job.name: job.tasks for stage in planned(monkeypatch, "quickstart", 128).stages for job in stage.jobs}
    assert tasks["samples"] == 128 and tasks["evaluation-base"] == tasks["evaluation-selected-seed0"] == 1
    many = Work(num_shards=128, num_rows=65_000, shards_left=128, rows_left=65_000)
    assert tasks_of_evaluation(many, 1, RunRecipeOptions(num_jobs=128)) == 128
    assert tasks_of_evaluation(many, 6, RunRecipeOptions(num_jobs=128)) == 21
    assert tasks_of_evaluation(many, 6, RunRecipeOptions(num_jobs=1)) == 1


def test_what_an_evaluation_and_a_training_need_is_looked_for_before_they_start(monkeypatch):
    needs = {job.name: job.needs for stage in planned(monkeypatch, "quickstart").stages for job in stage.jobs}
    assert needs["evaluation-base"] == needs["samples"] == ()
    assert needs["training-selected-seed0"] == ("data/selected/sft.jsonl",)
    assert needs["evaluation-selected-seed0"] == ("exported/selected-seed0/config.json",)


def test_students_that_are_asked_with_another_prompt_than_they_learn_from_are_warned_of(workdir, monkeypatch):
    path = Path(tiny_recipe()).resolve()
    same = planned(monkeypatch, str(path)).students
    assert same is not None and other_prompts(same) == []
    path.write_text(
        path.read_text().replace("  unselected:\n", "  unselected:\n    written: {sft_prompt: text_base}\n", 1)
    )
    other = planned(monkeypatch, str(path)).students
    assert other is not None and other_prompts(other) == [
        "students learn unselected with prompt text_base (written.sft_prompt) and are evaluated with code_sft"
    ]


def those_at_work_in(folder: Path) -> list[str]:
    """Command lines of the processes that were started for something in a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if f"{folder}/runs/" in line]


@pytest.mark.trial
def test_killed_at_random_and_repeated_the_loop_ends_the_same(workdir):
    command = [sys.executable, str(REPO / "pipeline" / "run_recipe.py"), tiny_recipe()]
    begun = time.monotonic()
    subprocess.run([*command, "--run", "undisturbed"], check=True, capture_output=True)
    whole_s = time.monotonic() - begun
    undisturbed = json.loads(Path("runs/undisturbed/reports/students/students.json").read_text())
    chance, kills = random.Random(1), 0
    while True:
        with open("loop.log", "ab") as log:
            loop = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            # at most a third of the whole, so that it is killed often; a training, the longest stage, is a fifth of it
            code = loop.wait(timeout=chance.uniform(0.02, 0.4) * whole_s)
        except subprocess.TimeoutExpired:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()
            kills += 1
            deadline = time.monotonic() + 30  # its steps have sessions of their own, and end by themselves
            while (left := those_at_work_in(workdir)) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not left, left
            assert kills < 60, Path("loop.log").read_text()[-3000:]
        else:
            assert code == 0, Path("loop.log").read_text()[-3000:]
            break
    lines = assert_whole()
    print(f"{kills} kills; undisturbed it took {whole_s:.0f} s")
    assert kills >= 3 and lines == undisturbed["lines"]
    ended = json.loads((RUN / "reports" / "students" / "students.json").read_text())
    assert ended["training_sets"] == undisturbed["training_sets"]
    for label in LABELS:
        mine, other = (
            Path("runs", run, "exported", label, "model.safetensors") for run in ("tiny-words", "undisturbed")
        )
        assert mine.read_bytes() == other.read_bytes()
    assert not [path for path in (RUN / "exported").iterdir() if path.name.startswith(".")]
