"""What is seen of a training while it runs and afterwards."""

import sys
from pathlib import Path

import pytest

from mathmill.training.options import TrainerOptions
from mathmill.training.progress import Progress, read_metrics

pytestmark = pytest.mark.slow  # TensorBoard's import
VALUES = {"loss": 2.5, "learning_rate": 2e-4, "grad_norm": 1.25, "tokens_per_s_per_gpu": 1234.6, "seconds": 0.5}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def options_in(folder: Path, **changes) -> TrainerOptions:
    (folder / "run" / "training").mkdir(parents=True)
    return TrainerOptions(folder=str(folder / "run" / "training"), model="", data=(), **changes)


def train(options: TrainerOptions, steps: int = 3, **values: float) -> Path:
    progress = Progress(options, 10, 0)
    for step in range(1, steps + 1):
        progress.step(step, **VALUES, **values)
    progress.validation(steps, 2.25)
    progress.close()
    return Path(options.folder)


def test_a_step_is_a_line_with_the_utilisation_where_the_peak_is_known(tmp_path: Path, capsys):
    train(options_in(tmp_path), utilisation=0.4123)
    first, *_, last = capsys.readouterr().err.splitlines()

    assert first[9:] == (
        "step  1/10  loss 2.5000   rate 2.00e-04   gradient  1.250     1,235 tokens/s a GPU   utilisation 41.2%     0.50 s   "
        "left 0:00:00"
    )
    assert last[9:] == "step  3/10  validation loss 2.2500"


def test_a_restart_cuts_the_metrics_back_to_the_step_it_goes_on_from(tmp_path: Path):
    options = options_in(tmp_path, device="cpu")
    metrics = train(options) / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4, "lo')
    Progress(options, 10, 2).close()

    assert [row["step"] for row in read_metrics(metrics)] == [1, 2]
    assert (metrics.parent / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_weights_and_biases_gets_every_step(tmp_path: Path):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    folder = train(options_in(tmp_path, wandb_project="maths"))
    [written] = (folder / "wandb").glob("offline-run-*-run/run-run.wandb")

    content = written.read_bytes()
    assert content.count(b"grad_norm") >= 3
    assert b"validation_loss" in content


@pytest.mark.parametrize("trouble", ["not installed", "no key"])
def test_a_training_never_ends_over_weights_and_biases(tmp_path: Path, trouble: str, monkeypatch, capsys):
    if trouble == "not installed":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
        monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(wandb.errors.UsageError("No API key")))
    folder = train(options_in(tmp_path, wandb_project="maths"))

    assert len(read_metrics(folder / "metrics.jsonl")) == 4
    assert "no Weights & Biases: " in capsys.readouterr().err
