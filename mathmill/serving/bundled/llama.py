"""A Llama-shaped language model in numpy: its configuration, its weights, prefill, and a decode step for many texts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mathmill.errors import UserError

ROW_CHOICES = (32, 16, 8, 4, 2)
"""How many texts one matrix product of a decode step may hold, see `even_rows`."""
SPAN = 64
"""Positions of one attention product: all have this shape, and what a longer text adds for others are exact zeros."""
QUERIES = 512
"""Queries that attend at once in prefill; bounds its memory."""

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a model, as its config.json says."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool
    end_tokens: frozenset[int]


def read_config(folder: Path) -> LlamaConfig:
    """Read config.json and generation_config.json. Refuses what this code would compute wrongly."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is no Hugging Face model folder (no config.json); give a folder with one")
    config: dict[str, Any] = json.loads(path.read_text())
    # transformers 5 writes rope_parameters; before, rope_theta stood at the top and rope_scaling beside it.
    rope = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope |= config.get("rope_scaling") or {}
    rope |= config.get("rope_parameters") or {}
    _refuse_other_shapes(path, config, rope)
    num_heads = config["num_attention_heads"]
    return LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        context_length=config.get("max_position_embeddings", 2048),
        rope_theta=float(rope["rope_theta"]),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied_embeddings=config.get("tie_word_embeddings", False),
        end_tokens=_end_tokens(folder, config),
    )


def _refuse_other_shapes(path: Path, config: dict[str, Any], rope: dict[str, Any]) -> None:
    expected = {
        "model_type": (config.get("model_type"), "llama"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (bool(config.get("attention_bias")), False),
        "mlp_bias": (bool(config.get("mlp_bias")), False),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "quantization_config": (config.get("quantization_config"), None),
    }
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise UserError(
                f"{path}: {field} is {found!r}; the bundled server runs Llama-shaped models with {field} {wanted!r} "
                "only, use another server kind (--server)"
            )


def _end_tokens(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    generation = folder / "generation_config.json"
    found = json.loads(generation.read_text()).get("eos_token_id") if generation.exists() else None
    found = config.get("eos_token_id") if found is None else found
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _as_float32(entry: dict[str, Any]) -> Array:
    kind, raw = entry["dtype"], entry["data"]
    if kind == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
        values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F16", "F32"):
        values = np.frombuffer(raw, {"F16": np.float16, "F32": np.float32}[kind]).astype(np.float32)
    else:
        raise UserError(f"weights of type {kind} are not read; save the model in float32, float16 or bfloat16")
    return values.reshape(entry["shape"])


def load_weights(folder: Path) -> dict[str, Array]:
    """All tensors of a folder as float32, by name; one model.safetensors or the shards that its index names."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    elif single.exists():
        files = [single]
    else:
        raise UserError(f"{folder} has no model.safetensors; save the model with safetensors")
    return {name: _as_float32(entry) for file in files for name, entry in safetensors.deserialize(file.read_bytes())}


@dataclass(frozen=True)
class Layer:
    """One block's weights, each as [out, in], those that share an input one above the other."""

    attention_norm: Array
    queries_keys_values: Array
    attention_out: Array
    mlp_norm: Array
    gate_up: Array
    down: Array


@dataclass(frozen=True)
class Prefill:
    """What a prompt leaves behind: keys and values [layers, kv heads, tokens, head_dim], logits of its end [vocab]."""

    keys: Array
    values: Array
    logits: Array


class Cache:
    """Keys and values of the texts in flight, one slot each: [layers, slots, kv heads, positions, head_dim].

    The active slots are the first ones. Positions grow by doubling up to the context length.
    """

    def __init__(self, config: LlamaConfig, slots: int, context_length: int):
        self.limit = -(-context_length // SPAN) * SPAN
        self.lengths = np.zeros(slots, np.int64)
        # Zeros, not empty: a masked position has probability 0, and 0 times a stray NaN would be NaN.
        shape = (config.num_layers, slots, config.num_kv_heads, min(4 * SPAN, self.limit), config.head_dim)
        self.keys, self.values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def make_room(self, positions: int) -> None:
        """Let every slot hold at least this many positions."""
        room = self.keys.shape[3]
        if positions <= room:
            return
        grown = room
        while grown < positions:
            grown = min(2 * grown, self.limit)
        shape = (*self.keys.shape[:3], grown, self.keys.shape[4])
        keys, values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        keys[:, :, :, :room], values[:, :, :, :room] = self.keys, self.values
        self.keys, self.values = keys, values

    def put(self, slot: int, prefill: Prefill) -> None:
        """Fill a slot with a prompt."""
        length = prefill.keys.shape[2]
        self.make_room(length + 1)
        self.keys[:, slot, :, :length], self.values[:, slot, :, :length] = prefill.keys, prefill.values
        self.lengths[slot] = length

    def move(self, source: int, slot: int) -> None:
        """Copy a slot over another that is free."""
        length = int(self.lengths[source])
        self.keys[:, slot, :, :length] = self.keys[:, source, :, :length]
        self.values[:, slot, :, :length] = self.values[:, source, :, :length]
        self.lengths[slot] = length


class Llama:
    """A model of a Hugging Face folder, computed in float32."""

    def __init__(self, folder: Path, context_length: int | None = None):
        self.config = config = read_config(folder)
        self.context_length = min(context_length or config.context_length, config.context_length)
        weights = load_weights(folder)
        try:
            self.embeddings = weights["model.embed_tokens.weight"]
            self.final_norm = weights["model.norm.weight"]
            self.head = self.embeddings if config.tied_embeddings else weights["lm_head.weight"]
            self.layers = [_layer(weights, f"model.layers.{number}.") for number in range(config.num_layers)]
        except KeyError as missing:
            raise UserError(
                f"{folder}: no tensor {missing} in its safetensors files; is the folder complete?"
            ) from None
        steps = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequencies = np.float32(1) / np.float32(config.rope_theta) ** steps
        angles = np.arange(self.context_length, dtype=np.float32)[:, None] * frequencies
        self.cosines, self.sines = np.cos(angles), np.sin(angles)
        first = self.layers[0]
        self.rows = even_rows([first.queries_keys_values, first.attention_out, first.gate_up, first.down, self.head])

    def prefill(self, tokens: list[int]) -> Prefill:
        """Run a prompt, alone: the result depends on nothing else."""
        states, keys, values = self._run(tokens)
        return Prefill(keys, values, (self._norm(states[-1:], self.final_norm) @ self.head.T)[0])

    def logits(self, tokens: list[int]) -> Array:
        """Logits after every token of a text: [tokens, vocab]."""
        return self._norm(self._run(tokens)[0], self.final_norm) @ self.head.T

    def decode(self, tokens: Array, cache: Cache) -> Array:
        """One step for the first len(tokens) slots: takes their last tokens, lengthens them, gives logits [slots, vocab].

        A slot's logits are, bit for bit, those it would get alone: see `even_rows` and SPAN.
        """
        count = len(tokens)
        positions = cache.lengths[:count]
        cache.make_room(int(positions.max()) + 1)
        spans = int(positions.max()) // SPAN + 1
        unseen = np.arange(spans * SPAN) > positions[:, None]
        mask = np.where(unseen, np.float32(-np.inf), np.float32(0)).reshape(count, 1, spans, 1, SPAN)
        rotation = self.cosines[positions][:, None], self.sines[positions][:, None]
        states = np.zeros((-(-count // self.rows) * self.rows, self.config.hidden_size), np.float32)
        states[:count] = self.embeddings[tokens]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            mixed = np.zeros((len(states), layer.attention_out.shape[1]), np.float32)
            projected = self._by_rows(self._norm(states, layer.attention_norm), layer.queries_keys_values)[:count]
            mixed[:count] = self._attend_step(projected, keys, values, positions, rotation, mask)
            states += self._by_rows(mixed, layer.attention_out)
            gate_up = self._by_rows(self._norm(states, layer.mlp_norm), layer.gate_up)
            states += self._by_rows(_swiglu(gate_up), layer.down)
        cache.lengths[:count] += 1
        return self._by_rows(self._norm(states, self.final_norm), self.head)[:count]

    def _attend_step(
        self, projected: Array, keys: Array, values: Array, positions: Array, rotation: tuple[Array, Array], mask: Array
    ) -> Array:
        """Attention of one new token a slot, its key and value stored first: [slots, hidden]."""
        config, count, spans = self.config, len(projected), mask.shape[2]
        queries, new_keys, new_values = self._heads(projected, *rotation)
        slots = np.arange(count)
        keys[slots, :, positions], values[slots, :, positions] = new_keys, new_values
        shape = (count, config.num_kv_heads, spans, SPAN, config.head_dim)
        seen_keys = keys[:count, :, : spans * SPAN].reshape(shape)
        seen_values = values[:count, :, : spans * SPAN].reshape(shape)
        scores = queries.reshape(count, config.num_kv_heads, 1, -1, config.head_dim) @ seen_keys.swapaxes(-1, -2)
        scores += mask
        scores -= scores.max(axis=(2, 4), keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(axis=2).sum(axis=-1)
        mixed = (scores @ seen_values).sum(axis=2) / total[..., None]
        return mixed.reshape(count, -1)

    def _run(self, tokens: list[int]) -> tuple[Array, Array, Array]:
        """The last states [tokens, hidden] of one text, and its keys and values."""
        config, count = self.config, len(tokens)
        shape = (config.num_layers, config.num_kv_heads, count, config.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        cosines, sines = self.cosines[:count, None], self.sines[:count, None]
        states = self.embeddings[tokens]
        for number, layer in enumerate(self.layers):
            projected = self._norm(states, layer.attention_norm) @ layer.queries_keys_values.T
            queries, new_keys, new_values = self._heads(projected, cosines, sines)
            keys[number], values[number] = new_keys.swapaxes(0, 1), new_values.swapaxes(0, 1)
            states = states + self._attend(queries, keys[number], values[number]) @ layer.attention_out.T
            states += _swiglu(self._norm(states, layer.mlp_norm) @ layer.gate_up.T) @ layer.down.T
        return states, keys, values

    def _attend(self, queries: Array, keys: Array, values: Array) -> Array:
        """Causal attention within one text: queries [tokens, heads, head_dim] -> [tokens, hidden]."""
        config, count = self.config, len(queries)
        grouped = queries.reshape(count, config.num_kv_heads, -1, config.head_dim).transpose(1, 2, 0, 3)
        mixed = np.empty_like(grouped)
        for start in range(0, count, QUERIES):
            end = min(start + QUERIES, count)
            scores = grouped[:, :, start:end] @ keys[:, None, :end].swapaxes(-1, -2)
            scores += np.where(np.arange(end) > np.arange(start, end)[:, None], np.float32(-np.inf), np.float32(0))
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed[:, :, start:end] = scores @ values[:, None, :end]
        return mixed.transpose(2, 0, 1, 3).reshape(count, -1)

    def _heads(self, projected: Array, cosines: Array, sines: Array) -> tuple[Array, Array, Array]:
        """Split [n, …] into rotated, scaled queries, rotated keys, and values: [n, heads, head_dim] each."""
        config = self.config
        heads = projected.reshape(len(projected), -1, config.head_dim)
        turned = heads[:, : config.num_heads + config.num_kv_heads]
        first, second = turned[..., : config.head_dim // 2], turned[..., config.head_dim // 2 :]
        turned = np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
        scale = np.float32(config.head_dim**-0.5)
        return (
            turned[:, : config.num_heads] * scale,
            turned[:, config.num_heads :],
            heads[:, config.num_heads + config.num_kv_heads :],
        )

    def _by_rows(self, states: Array, weight: Array) -> Array:
        """states @ weight.T, as products of `self.rows` rows each."""
        blocks = states.reshape(-1, self.rows, states.shape[1])
        return (weight @ blocks.swapaxes(1, 2)).swapaxes(1, 2).reshape(len(states), -1)

    def _norm(self, states: Array, weight: Array) -> Array:
        mean_square = np.add.reduce(np.square(states), axis=-1, keepdims=True) / np.float32(states.shape[-1])
        return states / np.sqrt(mean_square + np.float32(self.config.norm_eps)) * weight


def _layer(weights: dict[str, Array], prefix: str) -> Layer:
    def stacked(*names: str) -> Array:
        return np.concatenate([weights[prefix + name + ".weight"] for name in names])

    return Layer(
        attention_norm=weights[prefix + "input_layernorm.weight"],
        queries_keys_values=stacked("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out=stacked("self_attn.o_proj"),
        mlp_norm=weights[prefix + "post_attention_layernorm.weight"],
        gate_up=stacked("mlp.gate_proj", "mlp.up_proj"),
        down=stacked("mlp.down_proj"),
    )


def even_rows(weights: list[Array]) -> int:
    """The most rows a product with these weights [out, in] may have so that a row's result does not depend on its place.

    BLAS rounds a row differently in products of different heights, and in some heights by its place: OpenBLAS's AVX2
    kernels do so at 32 rows, not at 16. So a decode step is made of products of one height, and that height is measured
    here, on this machine. Products of one row, the last resort, are even by construction.
    """
    generator = np.random.default_rng(0)
    for rows in ROW_CHOICES:
        if all(_is_even(weight, generator.standard_normal((rows, weight.shape[1]), np.float32)) for weight in weights):
            return rows
    return 1


def _is_even(weight: Array, states: Array) -> bool:
    straight = weight @ states.T
    return all(
        np.array_equal(weight @ np.roll(states, turn, axis=0).T, np.roll(straight, turn, axis=1))
        for turn in range(1, len(states))
    )


def _swiglu(gate_up: Array) -> Array:
    gate, up = gate_up[:, : gate_up.shape[1] // 2], gate_up[:, gate_up.shape[1] // 2 :]
    with np.errstate(over="ignore"):  # exp(-gate) may be inf, and gate / inf is the right 0
        return gate / (np.float32(1) + np.exp(-gate)) * up
