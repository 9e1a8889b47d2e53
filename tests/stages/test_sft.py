"""The fine-tuning stages as a user meets them: refusals, renderings, and real Slurm jobs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.training.making import REPO, losses, options_for, train, write_rows

RUN_SFT = [sys.executable, REPO / "pipeline" / "run_sft.py"]


def call(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_70b_recipe_renders_with_its_estimate_beside_the_published_layout(workdir: Path):
    done = call(*RUN_SFT, "--cluster", "selene", "--recipe", "openmath-codellama-70b", "--dry_run")

    assert done.returncode == 0, done.stderr
    assert "tensor 8 x pipeline 2 x data 16 = 256 GPUs; batch 128 = 16 x 1 x 8 accumulated" in done.stderr
    assert "GB a GPU (weights 8.6, gradients 17.2, optimizer 3.2, activations" in done.stderr
    assert "of 80 GB" in done.stderr
    assert "#SBATCH --nodes=32\n" in done.stdout
    assert "#SBATCH --ntasks-per-node=1\n" in done.stdout
    assert (
        'python3 -m mathmill.training.torchrun --nnodes=32 --nproc_per_node=8 -m mathmill.training "$options"'
        in done.stdout
    )
    assert not any(workdir.iterdir())
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tensor_parallel", "3"], "--tensor_parallel 3 does not divide the 64 attention heads of the model"),
        (["--pipeline_parallel", "3"], "--pipeline_parallel 3 does not divide the 80 layers of the model"),
        (["--global_batch", "100"], "--global_batch 100 is not divisible by micro batch 1 x data parallel 16"),
        (["--num_nodes", "1", "--pipeline_parallel", "1"], "estimated "),
        (["--steps", "5", "--epochs", "1"], "--steps and --epochs say the same; give one"),
        (["--num_jobs", "2"], "--num_jobs: a training is one job"),
        (["--add_jobs"], "--add_jobs: a training is one job; stop it first"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_trained_is_refused_in_one_line(workdir: Path, words: list[str], said: str):
    done = call(*RUN_SFT, "--cluster", "selene", "--recipe", "openmath-codellama-70b", "--dry_run", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_without_a_training_set_the_next_command_is_named(workdir: Path):
    done = call(*RUN_SFT)

    assert done.returncode == 2
    assert done.stderr == "error: no training set at sft-data; make one: python pipeline/prepare_sft_data.py\n"


@pytest.fixture
def cluster_file(workdir: Path) -> Path:
    cluster = {"executor": "slurm", "partitions": {"cpu": "batch"}, "cpus": 2, "python": sys.executable}
    path = workdir / "processors.yaml"
    path.write_text(yaml.safe_dump(cluster))
    return path


@pytest.mark.slow
def test_two_nodes_train_with_tensor_and_pipeline_parallelism_as_one_process_does_and_the_bundled_server_serves_it(
    workdir: Path, cluster_file: Path, slurm
):
    """The chain of the stages: train on Slurm (TP 2 x PP 2 on two nodes), export, average, serve."""
    pytest.importorskip("torch", reason="needs the extra `train`")
    rows = write_rows(workdir / "rows.jsonl", 60)
    words = [
        "--recipe",
        "words",
        "--data",
        rows,
        "--steps",
        4,
        "--save_every",
        2,
        "--global_batch",
        8,
        "--micro_batch",
        2,
    ]
    launched = call(*RUN_SFT, "--cluster", cluster_file, *words, "--tensor_parallel", 2, "--pipeline_parallel", 2,
                    "--num_nodes", 2, "--context_length", 256)  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    run = workdir / "runs" / "sft-words"
    (submitted,) = (run / "jobs" / "submitted.jsonl").read_text().splitlines()
    job = json.loads(submitted)
    states = slurm.states(str(job.get("job_id") or job["task_ids"][0]), timeout=400)
    log = "\n".join(path.read_text() for path in run.glob("logs/*.log"))
    assert set(states.values()) == {"COMPLETED"}, log[-4000:]

    code, said = train(options_for(workdir / "alone", rows, steps=4), 1)
    assert code == 0, said
    assert losses(run / "training") == pytest.approx(losses(workdir / "alone"), abs=5e-5)

    exported = call(sys.executable, REPO / "pipeline" / "export_checkpoint.py", "sft-words", "--all", "--dtype", "fp16")
    assert exported.returncode == 0, exported.stderr
    averaged = call(sys.executable, REPO / "pipeline" / "average_checkpoints.py", "sft-words")
    assert averaged.returncode == 0, averaged.stderr
    again = call(*RUN_SFT, "--cluster", cluster_file, *words, "--context_length", 256)
    assert (again.returncode, "is finished; next: python pipeline/export_checkpoint.py" in again.stderr) == (0, True)
    served = call(
        sys.executable, REPO / "pipeline" / "run_generation.py", "--model", run / "exported" / "average", "--run", "eval",
        "--problems", first_problems(workdir), "--num_samples", 1, "--temperature", 0,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    solved = [json.loads(line) for path in workdir.glob("runs/eval/solutions/*/p0*.jsonl") for line in path.open()]
    assert len(solved) == 10
    assert sum(bool(one["is_correct"]) for one in solved) >= 8


@pytest.mark.trial
def test_a_training_whose_time_is_up_queues_itself_again_and_ends_when_it_is_done(
    workdir: Path, cluster_file: Path, slurm
):
    rows = write_rows(workdir / "rows.jsonl", 60)
    cluster = yaml.safe_load(cluster_file.read_text())
    # as if the first start had come near its limit
    cluster["setup"] = ['if [ "$MATHMILL_RESTART" = 0 ]; then export MATHMILL_STOP_AT=$(date +%s); fi']
    cluster["time_limit"] = "1:00:00"
    cluster_file.write_text(yaml.safe_dump(cluster))
    words = ["--recipe", "words", "--data", rows, "--steps", 5, "--global_batch", 8, "--context_length", 256]
    launched = call(*RUN_SFT, "--cluster", cluster_file, *words)
    assert launched.returncode == 0, launched.stderr
    run = workdir / "runs" / "sft-words"
    job = json.loads((run / "jobs" / "submitted.jsonl").read_text())
    finished = run / "training" / "finished.json"
    deadline = time.monotonic() + 900
    while not finished.exists():
        assert time.monotonic() < deadline, "\n".join(path.read_text() for path in run.glob("logs/*.log"))[-4000:]
        time.sleep(2)
    states = slurm.states(str(job.get("job_id") or job["task_ids"][0]), timeout=120)
    log = "\n".join(path.read_text() for path in run.glob("logs/*.log"))
    code, said = train(options_for(workdir / "alone", rows, steps=5), 1)

    assert set(states.values()) == {"COMPLETED"}
    assert "stopped after step 1 of 5: its time is up" in log
    assert "queues again" in log and "from step 1" in log and "finished: 5 steps" in log
    assert code == 0, said
    assert losses(run / "training") == pytest.approx(losses(workdir / "alone"), abs=5e-5)


def first_problems(folder: Path) -> Path:
    lines = (REPO / "problems" / "words" / "test.jsonl").read_text().splitlines()[:10]
    (folder / "ten.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "ten.jsonl"


def test_the_nemo_kind_renders_the_same_recipe_in_nemos_own_words(workdir: Path):
    from mathmill.launch.cluster import load_cluster
    from mathmill.run import Run
    from mathmill.stages import sft

    options = sft.SftOptions(recipe="openmath2-llama3.1-70b", trainer="nemo", cluster="selene")
    recipe = sft.overridden(sft.load_recipe(options.recipe), options)
    trainer = sft.trainer_options(options, recipe, load_cluster("selene"), Run(workdir / "run"), Path("/models/l"))
    job = sft.nemo_job(trainer, recipe, 8, sft.shape_for(recipe, Path("/models/l")), None)
    settings = job.options["nemo"]

    assert job.main.arguments == ("--nnodes=32", "--nproc_per_node=8", "-m", "mathmill.training.nemo")
    assert settings["MegatronStrategy"]["tensor_model_parallel_size"] == 8
    assert settings["Trainer"] | {"max_steps": 20_000, "num_nodes": 32, "devices": 8} == settings["Trainer"]
    assert settings["FineTuningDataModule"]["global_batch_size"] == 512
    assert settings["OptimizerConfig"]["lr"] == 1e-5
    assert settings["ModelCheckpoint"]["every_n_train_steps"] == 3330
    assert settings["model"] | {"class": "LlamaModel", "source": "hf:///models/l"} == settings["model"]
