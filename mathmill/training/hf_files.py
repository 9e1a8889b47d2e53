"""Weights in a Hugging Face folder: slices read from its safetensors, shards written as a stream."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mathmill.errors import UserError
from mathmill.files import unique_name, write_whole

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NOT_WEIGHTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
"""What an exported folder takes over from the one that training started with."""


@dataclass(frozen=True)
class Entry:
    """A tensor as a header says: safetensors' name of its type, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


class WeightFiles:
    """The tensors of a folder, by name; nothing is read before it is asked for, and then only the slice."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of = _files(folder)
        self._open: dict[Path, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        """All tensors, in the order of their files."""
        return list(self._file_of)

    def shards(self) -> dict[str, list[str]]:
        """The names of the tensors of each file."""
        shards: dict[str, list[str]] = {}
        for name, file in self._file_of.items():
            shards.setdefault(file.name, []).append(name)
        return shards

    def entry(self, name: str) -> Entry:
        part = self._slice(name)
        return Entry(part.get_dtype(), tuple(part.get_shape()))

    def read(self, name: str, rows: slice = slice(None), columns: slice | None = None) -> torch.Tensor:
        """A tensor, or some of its rows and columns: only their bytes are touched."""
        part = self._slice(name)
        return part[rows] if columns is None else part[rows, columns]

    def close(self) -> None:
        """Let go of the mapped files, and of the memory that their pages take."""
        self._open.clear()

    def _slice(self, name: str) -> Any:
        if name not in self._file_of:
            raise UserError(f"{self.folder}: no tensor {name} in its safetensors files; is the folder complete?")
        file = self._file_of[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except Exception as problem:
                raise UserError(f"{file} is no whole safetensors file: {problem}") from None
        return self._open[file].get_slice(name)


def _files(folder: Path) -> dict[str, Path]:
    if (index := folder / INDEX).exists():
        named = json.loads(index.read_text())["weight_map"]
        files = {name: folder / file for name, file in sorted(named.items(), key=lambda item: (item[1], item[0]))}
        if missing := sorted({file.name for file in files.values() if not file.exists()}):
            raise UserError(f"{folder}: {INDEX} names files that are not there: {', '.join(missing[:3])}")
        return files
    if (single := folder / SINGLE).exists():
        try:
            with safe_open(single, framework="pt") as opened:
                return dict.fromkeys(opened.keys(), single)
        except Exception as problem:
            raise UserError(f"{single} is no whole safetensors file: {problem}") from None
    raise UserError(f"{folder} has no {SINGLE}; save the model with safetensors")


def split_into_shards(entries: dict[str, Entry], max_shard_bytes: int) -> list[list[str]]:
    """Names in their order, cut where a shard would grow beyond the size; a tensor that is larger has its own."""
    shards: list[list[str]] = []
    size = 0
    for name, entry in entries.items():
        if not shards or size + entry.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.num_bytes
    return shards


def write_folder(
    target: Path,
    entries: dict[str, Entry],
    tensor_of: Callable[[str], torch.Tensor],
    max_shard_bytes: int,
    like: Path,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a whole Hugging Face folder, or nothing: shards, index, and the small files of `like`.

    One tensor is in memory at a time. The folder appears under its name when all of it is on disk; what killed writers of it
    left goes then: before, nobody can tell whether they live on another node, and afterwards nobody needs theirs.
    """
    if target.exists():
        raise UserError(f"{target} is there already; remove it, or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    beginning = f".{target.name}~"
    beside = target.with_name(beginning + unique_name())
    try:
        beside.mkdir()
        shards = split_into_shards(entries, max_shard_bytes)
        single = len(shards) == 1
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = SINGLE if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_shard(beside / file, {name: entries[name] for name in names}, tensor_of)
            weight_map |= dict.fromkeys(names, file)
            say(f"{file}: {len(names)} tensors")
        if not single:
            size = sum(entry.num_bytes for entry in entries.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            write_whole(beside / INDEX, json.dumps(index, indent=2) + "\n")
        copy_small_files(like, beside, next(iter(entries.values())).dtype)
        os.rename(beside, target)
    except OSError:
        if not target.exists():
            raise
        say(f"{target} is there: another process made it meanwhile")
    else:
        for path in target.parent.iterdir():
            if path.name.startswith(beginning) and "~" not in path.name.removeprefix(beginning):
                shutil.rmtree(path, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_shard(path: Path, entries: dict[str, Entry], tensor_of: Callable[[str], torch.Tensor]) -> None:
    """A safetensors file, its header first and then one tensor after the other.

    Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON, data). The library's own
    `save_file` wants all tensors of a shard in memory at once, and takes a copy.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, entry in entries.items():
        end = start + entry.num_bytes
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries.items():
            tensor = tensor_of(name).to(DTYPES[entry.dtype]).contiguous()
            if tuple(tensor.shape) != entry.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {entry.shape}")
            _write_bytes(stream, tensor)
            del tensor
        stream.flush()
        os.fsync(stream.fileno())


def _write_bytes(stream: Any, tensor: torch.Tensor, chunk: int = 1 << 24) -> None:
    raw = tensor.flatten().view(torch.uint8)
    for start in range(0, raw.numel(), chunk):
        stream.write(raw[start : start + chunk].numpy().data)


def copy_small_files(source: Path, target: Path, dtype: str) -> None:
    """Tokenizer and configuration; config.json says the type that the weights have now."""
    for name in NOT_WEIGHTS:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source / name, target / name)
    config = json.loads((source / "config.json").read_text())
    words = str(DTYPES[dtype]).removeprefix("torch.")
    config |= {key: words for key in ("torch_dtype", "dtype") if key in config}
    write_whole(target / "config.json", json.dumps(config, indent=2) + "\n")


def rows_in_pieces(num_rows: int, row_bytes: int, most: int = 1 << 28) -> Iterator[slice]:
    """Slices of rows of at most so many bytes each, to work through a tensor that is large."""
    step = max(1, most // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
