"""The average of exported models, tensor by tensor, summed in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mathmill.errors import UserError
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
