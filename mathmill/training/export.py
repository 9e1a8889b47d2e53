"""A checkpoint as a Hugging Face folder: one tensor after the other, on one CPU, whatever layout trained it."""

import sys
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan, ReadItem
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mathmill.errors import UserError
from mathmill.options import ended_by, section
from mathmill.training.hf_files import NAMES, Entry, write_folder
from mathmill.training.shape import ModelShape, read_shape
from mathmill.training.weights import EMBEDDINGS, FINAL_NORM, HEAD, all_names, split_qkv

LAYERS = "decoder.layers"
SAME = {
    "input_layernorm.weight": ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    "post_attention_layernorm.weight": ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    "self_attn.o_proj.weight": ("self_attention.linear_proj.weight",),
    "mlp.down_proj.weight": ("mlp.linear_fc2.weight",),
    "block_sparse_moe.gate.weight": ("mlp.router.weight",),
}
"""Hugging Face's tensors of a layer that megatron-core keeps as they are; the second name is that of mixtures of experts."""


class Checkpoint:
    """The weights of a checkpoint, read by Hugging Face's names."""

    def __init__(self, weights: Path, shape: ModelShape):
        if not (weights / "metadata.json").exists():
            raise UserError(f"{weights} is no whole checkpoint; look with: ls {weights.parent.parent}")
        self._weights, self._shape = weights, shape
        self._reader = FileSystemReader(weights)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        found = metadata.state_dict_metadata.items()
        self._found = {key: entry for key, entry in found if isinstance(entry, TensorStorageMetadata)}
        self._qkv: tuple[int, tuple[torch.Tensor, ...]] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self._found["embedding.word_embeddings.weight"].properties.dtype

    def read(self, name: str) -> torch.Tensor:
        """One tensor of Hugging Face's layout."""
        shape = self._shape
        vocabulary = (shape.vocab_size, shape.hidden_size)
        if name == EMBEDDINGS:
            return self._load("embedding.word_embeddings.weight", vocabulary)
        if name == HEAD:
            return self._load("output_layer.weight", vocabulary)
        if name == FINAL_NORM:
            return self._load("decoder.final_layernorm.weight", (shape.hidden_size,))
        _, _, number, part = name.split(".", 3)
        return self._of_layer(int(number), part)

    def _of_layer(self, layer: int, part: str) -> torch.Tensor:
        shape = self._shape
        at = (0, layer, shape.num_layers)
        if part in SAME:
            key = next(key for end in SAME[part] if (key := f"{LAYERS}.{end}") in self._found)
            return self._load(key, self._found[key].size[1:], at)
        if part.startswith("self_attn."):
            return self._of_qkv(layer)["qkv".index(part.split(".")[1][0])]
        gate_or_up = (shape.ffn_size, shape.hidden_size)
        if not part.startswith("block_sparse_moe."):
            half = 0 if part == "mlp.gate_proj.weight" else 1
            return self._load(f"{LAYERS}.mlp.linear_fc1.weight", gate_or_up, at, (1, half, 2))
        _, _, expert, matrix, _ = part.split(".")
        of_expert = (1, int(expert), shape.num_experts)
        experts = f"{LAYERS}.mlp.experts.experts"
        if matrix == "w2":
            return self._load(f"{experts}.linear_fc2.weight", gate_or_up[::-1], at, of_expert)
        half = 0 if matrix == "w1" else 1
        return self._load(f"{experts}.linear_fc1.weight", gate_or_up, at, of_expert, (2, half, 2))

    def _of_qkv(self, layer: int) -> tuple[torch.Tensor, ...]:
        if self._qkv is None or self._qkv[0] != layer:
            self._qkv = None
            shape = self._shape
            rows = shape.head_dim * (shape.num_heads + 2 * shape.num_kv_heads)
            key = f"{LAYERS}.self_attention.linear_qkv.weight"
            joined = self._load(key, (rows, shape.hidden_size), (0, layer, shape.num_layers))
            self._qkv = layer, split_qkv(joined, shape.num_kv_heads, shape.head_dim)
        return self._qkv[1]

    def _load(self, key: str, size: tuple[int, ...], *offsets: tuple[int, int, int]) -> torch.Tensor:
        """A part of a whole tensor: offsets are (axis, number, of how many), those of layers and experts first."""
        whole = self._found[key]
        part = [(0, length) for length in whole.size]
        for axis, number, count in offsets:
            part[axis] = (number * whole.size[axis] // count, whole.size[axis] // count)
        chunk = ChunkStorageMetadata(torch.Size(start for start, _ in part), torch.Size(length for _, length in part))
        content = torch.empty(chunk.sizes, dtype=whole.properties.dtype)
        plan = LoadPlan(create_read_items_for_chunk_list(key, whole, [chunk]))
        try:
            self._reader.read_data(self._reader.prepare_local_plan(plan), _Into(content)).wait()
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError) as problem:
            reason = " ".join(f"{type(problem).__name__} {problem}".split())[:200]
            raise UserError(f"{self._weights}: its files are damaged ({reason}); export another checkpoint") from None
        return content.reshape(size)


class _Into(DefaultLoadPlanner):
    """Puts what is read where it belongs in one tensor."""

    def __init__(self, content: torch.Tensor):
        super().__init__()
        self._content = content

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        place = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._content[tuple(slice(start, start + length) for start, length in place)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass


def export(
    weights: Path,
    model: Path,
    target: Path,
    max_shard_bytes: int = 5_000_000_000,
    dtype: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the weights of a checkpoint as a Hugging Face folder, with tokenizer and configuration of `model`.

    `dtype` is safetensors' name of the written type; None: the one that was trained with.
    """
    shape = read_shape(model)
    checkpoint = Checkpoint(weights, shape)
    written = dtype or NAMES[checkpoint.dtype]
    entries = {name: Entry(written, size) for name, size in all_names(shape).items()}
    write_folder(target, entries, checkpoint.read, max_shard_bytes, model, say)


def main(options: dict[str, Any]) -> None:
    """Export the checkpoints of a job's options, skipping those that are there."""
    failed = []
    for weights, target in options["exports"]:
        if Path(target).exists():
            print(f"{target} is there already", file=sys.stderr)
            continue
        if not Path(weights).exists():
            failed.append(weights)
            continue
        print(f"{target}: from {weights}", file=sys.stderr, flush=True)
        export(Path(weights), Path(options["model"]), Path(target), options["max_shard_bytes"], options["dtype"], _say)
    if failed:
        raise UserError(
            f"not there: {', '.join(failed)}; the trainings did not end well, the same launch command goes on"
        )


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    ended_by(lambda: main(section(sys.argv[1], "export")))
