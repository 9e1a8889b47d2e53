"""The average of exported models, tensor by tensor, summed in float32."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mathmill.errors import UserError
from mathmill.options import ended_by, section
from mathmill.training.hf_files import DTYPES, Entry, WeightFiles, rows_in_pieces, write_folder


def average(
    folders: Sequence[Path],
    target: Path,
    max_shard_bytes: int = 5_000_000_000,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the plain mean of Hugging Face folders. They must hold the same tensors in the same shapes.

    `dtype` is safetensors' name of the written type; None: that of the first folder. Sums are float32 whatever it is: in
    bfloat16 the mean of nearly equal weights would be one of them.
    """
    if len(folders) < 2:
        raise UserError(f"an average needs two folders or more, not {len(folders)}")
    models = [WeightFiles(folder) for folder in folders]
    first = models[0]
    entries = {name: first.entry(name) for name in first.names()}
    for model in models[1:]:
        _refuse_difference(first, model, entries)
    written = {name: Entry(dtype or entry.dtype, entry.shape) for name, entry in entries.items()}

    def mean(name: str) -> torch.Tensor:
        entry = written[name]
        result = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        row_bytes = 4 * max(1, result.numel() // max(1, entry.shape[0]))
        for rows in rows_in_pieces(entry.shape[0], row_bytes, 1 << 25):
            total = models[0].read(name, rows).to(torch.float32, copy=True)
            for model in models[1:]:
                total += model.read(name, rows)
            result[rows] = total / len(models)
        for model in models:
            model.close()
        return result

    write_folder(target, written, mean, max_shard_bytes, folders[0], say)


def _refuse_difference(first: WeightFiles, other: WeightFiles, entries: dict[str, Entry]) -> None:
    if set(other.names()) != set(entries):
        odd = sorted(set(other.names()) ^ set(entries))
        raise UserError(f"{other.folder} and {first.folder} do not hold the same tensors: {', '.join(odd[:3])}")
    for name, entry in entries.items():
        if other.entry(name).shape != entry.shape:
            raise UserError(
                f"{name} is {list(entry.shape)} in {first.folder} and {list(other.entry(name).shape)} in {other.folder}"
            )


def main(options: dict[str, Any]) -> None:
    """Average the folders of a job's options."""
    folders = [Path(folder) for folder in options["models"]]
    average(folders, Path(options["target"]), options["max_shard_bytes"], options["dtype"], _say)
    print(f"{options['target']}: the mean of {len(folders)} models", file=sys.stderr)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    ended_by(lambda: main(section(sys.argv[1], "average")))
