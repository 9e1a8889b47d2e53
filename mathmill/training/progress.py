"""What is seen of a training: a line, a row of JSON, TensorBoard, Weights & Biases, and a picture at the end."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mathmill.files import write_whole
from mathmill.training.options import TrainerOptions


def say(text: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Progress:
    """Rank 0's records of the steps. The file of metrics is cut back to the step that a restart goes on from."""

    def __init__(self, options: TrainerOptions, steps: int, first_step: int):
        self._options = options
        self._steps = steps
        self._folder = Path(options.folder)
        self._path = self._folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self._path) if row["step"] <= first_step]
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = self._path.open("a")
        self._board = _tensorboard(self._folder / "tensorboard", first_step)
        self._wandb = _wandb(options)
        self._started, self._first = time.monotonic(), first_step

    def step(self, step: int, **values: float) -> None:
        """A finished step: every one is a row, every `log_every`-th a line."""
        left = (time.monotonic() - self._started) / max(1, step - self._first) * (self._steps - step)
        self._record({"step": step, **values})
        if step % self._options.log_every == 0 or step == self._steps:
            say(self._line(step, values) + f"   left {_duration(left)}")

    def validation(self, step: int, loss: float) -> None:
        """The loss on the validation rows after a step."""
        self._record({"step": step, "validation_loss": loss})
        say(f"{self._of(step)}  validation loss {loss:.4f}")

    def _of(self, step: int) -> str:
        return f"step {step:>{len(str(self._steps))}}/{self._steps}"

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        """A step in columns, so that a log can be read downwards. The utilisation is told where the peak is known."""
        each = "GPU" if self._options.device == "cuda" else "process"
        parts = [
            f"{self._of(step)}  loss {values['loss']:.4f}",
            f"rate {values['learning_rate']:.2e}",
            f"gradient {values['grad_norm']:6.3f}",
            f"{values['tokens_per_s_per_gpu']:7,.0f} tokens/s a {each}",
            *([f"utilisation {values['utilisation']:5.1%}"] if "utilisation" in values else []),
            f"{values['seconds']:6.2f} s",
        ]
        return "   ".join(parts)

    def _record(self, row: Mapping[str, float]) -> None:
        self._stream.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")
        self._stream.flush()
        for name, value in row.items():
            if name != "step" and self._board is not None:
                self._board.add_scalar(name, value, int(row["step"]))
        if self._wandb is not None:
            self._wandb.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        """Flush, and draw the loss curve."""
        self._stream.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        draw(read_metrics(self._path), self._folder / "loss.png")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of metrics; a line that a kill tore is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The loss, and the validation loss, over the steps, as a PNG; nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        say("no loss.png: matplotlib is not installed here")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label, colour in (("loss", "training", "#2f6fdd"), ("validation_loss", "validation", "#d9652b")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            marker = "o" if len(points) < 20 else None
            axes.plot(
                *zip(*points, strict=True), label=f"{label}, last {points[-1][1]:.4f}", color=colour, marker=marker
            )
            axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss per counted token (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e6e9ef")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("no TensorBoard files: tensorboard is not installed here")
        return None
    # purge_step hides what an earlier start wrote after the step that this one goes on from
    return SummaryWriter(str(folder), purge_step=first_step + 1)


def _wandb(options: TrainerOptions) -> Any:
    """A run of Weights & Biases; None where none is asked for or to be had, which never ends a training."""
    if options.wandb_project is None:
        return None
    try:
        import wandb
    except ImportError:
        say("no Weights & Biases: wandb is not installed here")
        return None
    # the id makes a restart go on in the same run
    name = Path(options.folder).parent.name
    try:
        return wandb.init(project=options.wandb_project, id=name, name=name, resume="allow", dir=options.folder)
    except Exception as problem:  # no key, no way out of the node, a project that is not ours
        say(f"no Weights & Biases: {' '.join(str(problem).split())}")
        return None


def _plain(value: float) -> float:
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
