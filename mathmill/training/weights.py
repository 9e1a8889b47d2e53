"""Where each weight of Hugging Face's layout stands in megatron-core's, and each rank's part of it.

megatron-core keeps queries, keys and values of a group of heads side by side in one matrix, gate above up in another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mathmill.training.hf_files import WeightFiles
from mathmill.training.shape import ModelShape

Read = Callable[[str, slice, slice | None], torch.Tensor]
EMBEDDINGS, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
ALL = slice(None)


@dataclass(frozen=True)
class Part:
    """One of `count` equal parts of a matrix, along rows or columns."""

    rank: int
    count: int

    def of(self, size: int) -> slice:
        if size % self.count:
            raise ValueError(f"{size} is not divisible by {self.count}")
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)


def layer_names(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensors of one layer with their whole shapes, in the order in which they are written."""
    hidden, ffn, size = shape.hidden_size, shape.ffn_size, shape.head_dim
    queries, keys = shape.num_heads * size, shape.num_kv_heads * size
    at = f"model.layers.{layer}"
    names: dict[str, tuple[int, ...]] = {
        f"{at}.input_layernorm.weight": (hidden,),
        f"{at}.self_attn.q_proj.weight": (queries, hidden),
        f"{at}.self_attn.k_proj.weight": (keys, hidden),
        f"{at}.self_attn.v_proj.weight": (keys, hidden),
        f"{at}.self_attn.o_proj.weight": (hidden, queries),
        f"{at}.post_attention_layernorm.weight": (hidden,),
    }
    if shape.num_experts:
        names[f"{at}.block_sparse_moe.gate.weight"] = (shape.num_experts, hidden)
    for expert in range(max(1, shape.num_experts)):
        gate, up, down = mlp_names(shape, layer, expert)
        names |= {gate: (ffn, hidden), up: (ffn, hidden), down: (hidden, ffn)}
    return names


def mlp_names(shape: ModelShape, layer: int, expert: int) -> tuple[str, str, str]:
    """gate, up and down of a layer, or of one of its experts."""
    at = f"model.layers.{layer}"
    if shape.num_experts:
        return tuple(f"{at}.block_sparse_moe.experts.{expert}.w{part}.weight" for part in (1, 3, 2))  # type: ignore
    return tuple(f"{at}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))  # type: ignore


def all_names(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model with its shape."""
    vocabulary = (shape.vocab_size, shape.hidden_size)
    names: dict[str, tuple[int, ...]] = {EMBEDDINGS: vocabulary}
    for layer in range(shape.num_layers):
        names |= layer_names(shape, layer)
    names[FINAL_NORM] = (shape.hidden_size,)
    return names if shape.tied_embeddings else {**names, HEAD: vocabulary}


def join_qkv(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """Three matrices [heads x size, hidden] as one, group by group: its queries, its key, its value."""
    parts = [matrix.reshape(groups, -1, size, matrix.shape[-1]) for matrix in (queries, keys, values)]
    return torch.cat(parts, dim=1).reshape(-1, queries.shape[-1])


def split_qkv(joined: torch.Tensor, groups: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of `join_qkv`."""
    hidden = joined.shape[-1]
    by_group = joined.reshape(groups, -1, size, hidden)
    queries, keys, values = by_group[:, :-2], by_group[:, -2:-1], by_group[:, -1:]
    return queries.reshape(-1, hidden), keys.reshape(-1, hidden), values.reshape(-1, hidden)


def local_weights(
    shape: ModelShape, read: Read, parameters: set[str], layers: range, tp: Part, experts: range
) -> Iterator[tuple[str, torch.Tensor]]:
    """megatron-core's name and content of every weight that a rank holds.

    `layers`: this stage's, counted in the whole model; `experts`: this rank's. `parameters` are the model's own names,
    from which the kind of its layers (Transformer Engine's or megatron-core's) is read.
    """
    if "embedding.word_embeddings.weight" in parameters:
        yield "embedding.word_embeddings.weight", read(EMBEDDINGS, tp.of(shape.vocab_size), None)
    for local, layer in enumerate(layers):
        yield from _layer(shape, read, parameters, (f"decoder.layers.{local}", layer), tp, experts)
    if "decoder.final_layernorm.weight" in parameters:
        yield "decoder.final_layernorm.weight", read(FINAL_NORM, ALL, None)
    if "output_layer.weight" in parameters:
        head = EMBEDDINGS if shape.tied_embeddings else HEAD
        yield "output_layer.weight", read(head, tp.of(shape.vocab_size), None)


def _layer(
    shape: ModelShape, read: Read, parameters: set[str], at: tuple[str, int], tp: Part, experts: range
) -> Iterator[tuple[str, torch.Tensor]]:
    local, layer = at
    size, hf = shape.head_dim, f"model.layers.{layer}"
    groups = tp.of(shape.num_kv_heads)
    queries = tp.of(shape.num_heads * size)
    keys = slice(groups.start * size, groups.stop * size)
    norms = {
        f"{local}.self_attention.linear_qkv.layer_norm_weight": f"{hf}.input_layernorm.weight",
        f"{local}.input_layernorm.weight": f"{hf}.input_layernorm.weight",
        f"{local}.mlp.linear_fc1.layer_norm_weight": f"{hf}.post_attention_layernorm.weight",
        f"{local}.pre_mlp_layernorm.weight": f"{hf}.post_attention_layernorm.weight",
        f"{local}.mlp.router.weight": f"{hf}.block_sparse_moe.gate.weight",
    }
    for name, source in norms.items():
        if name in parameters:
            yield name, read(source, ALL, None)
    yield (
        f"{local}.self_attention.linear_qkv.weight",
        join_qkv(
            read(f"{hf}.self_attn.q_proj.weight", queries, None),
            read(f"{hf}.self_attn.k_proj.weight", keys, None),
            read(f"{hf}.self_attn.v_proj.weight", keys, None),
            groups.stop - groups.start,
            size,
        ),
    )
    yield f"{local}.self_attention.linear_proj.weight", read(f"{hf}.self_attn.o_proj.weight", ALL, queries)
    rows = tp.of(shape.ffn_size)
    for number, expert in enumerate(experts if shape.num_experts else range(1)):
        gate, up, down = mlp_names(shape, layer, expert)
        first, second = mlp_targets(local, number if shape.num_experts else None, parameters)
        yield first, torch.cat([read(gate, rows, None), read(up, rows, None)])
        yield second, read(down, ALL, rows)


def mlp_targets(local: str, expert: int | None, parameters: set[str]) -> tuple[str, str]:
    """megatron-core's names of the two matrices of a layer or of one of a rank's experts."""
    if expert is None:
        return f"{local}.mlp.linear_fc1.weight", f"{local}.mlp.linear_fc2.weight"
    if f"{local}.mlp.experts.linear_fc1.weight{expert}" in parameters:  # Transformer Engine's grouped product
        return f"{local}.mlp.experts.linear_fc1.weight{expert}", f"{local}.mlp.experts.linear_fc2.weight{expert}"
    at = f"{local}.mlp.experts.local_experts.{expert}"
    return f"{at}.linear_fc1.weight", f"{at}.linear_fc2.weight"


@torch.no_grad()
def load_weights(
    model: torch.nn.Module, files: WeightFiles, shape: ModelShape, layers: range, tp: Part, experts: range
) -> None:
    """Fill a rank's model with its slices of a Hugging Face folder. Every parameter is set, or ValueError."""
    named = dict(model.named_parameters())
    missing = set(named)
    for name, content in local_weights(shape, files.read, set(named), layers, tp, experts):
        if named[name].shape != content.shape:
            raise ValueError(f"{name} is {tuple(named[name].shape)} here and {tuple(content.shape)} in {files.folder}")
        named[name].copy_(content)
        missing.discard(name)
    if missing:
        raise ValueError(f"{files.folder} says nothing of {', '.join(sorted(missing)[:5])}")
