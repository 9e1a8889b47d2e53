"""For test_weights.py, in a process of its own: a small model of each shape from transformers into megatron-core and back."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from megatron.core import dist_checkpointing, parallel_state
from torch import distributed as dist

from mathmill.training.checkpoints import METADATA
from mathmill.training.export import export
from mathmill.training.hf_files import WeightFiles
from mathmill.training.model import build_model, join
from mathmill.training.options import TrainerOptions
from mathmill.training.shape import read_shape
from mathmill.training.weights import Part, load_weights

COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 500.0}  # fmt: skip
MODELS = {
    "llama": transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "llama-3.1": transformers.LlamaConfig(**COMMON, rope_parameters=LLAMA3, tie_word_embeddings=False),
    "llama-linear": transformers.LlamaConfig(
        **COMMON, head_dim=16, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    ),
    "mistral": transformers.MistralConfig(**COMMON, sliding_window=32, tie_word_embeddings=False),
    "mixtral": transformers.MixtralConfig(
        **COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=None, tie_word_embeddings=False
    ),
}


@torch.no_grad()
def differences(folder: Path, options: TrainerOptions, place: Any) -> dict[str, float]:
    """Largest difference of logits: transformers and megatron-core, and transformers after the way back."""
    torch.manual_seed(1)
    config = MODELS[folder.name]
    source = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, weight in source.named_parameters():
        if weight.dim() == 1:
            weight.add_(0.1 * torch.randn_like(weight)) if "norm" in name else None
    source.save_pretrained(folder / "hf", max_shard_size="40KB")
    shape = read_shape(folder / "hf")
    model = build_model(shape, replace(options, model=str(folder / "hf")), place).eval()
    layers, experts = range(shape.num_layers), range(shape.num_experts)
    load_weights(model, WeightFiles(folder / "hf"), shape, layers, Part(0, 1), experts)
    tokens = torch.randint(0, shape.vocab_size, (2, 120))
    expected = source(tokens).logits
    found = model(tokens, torch.arange(120).expand(2, -1), None)
    (folder / "weights").mkdir()
    dist_checkpointing.save(
        {"model": model.sharded_state_dict(metadata=dict(METADATA))}, str(folder / "weights"), content_metadata=METADATA
    )
    export(folder / "weights", folder / "hf", folder / "back", max_shard_bytes=40_000)
    back = transformers.AutoModelForCausalLM.from_pretrained(folder / "back", attn_implementation="eager").eval()
    one, other = WeightFiles(folder / "hf"), WeightFiles(folder / "back")
    assert set(one.names()) == set(other.names()), set(one.names()) ^ set(other.names())
    assert all(torch.equal(one.read(name), other.read(name)) for name in one.names())
    return {
        "in": float((expected - found).abs().max()),
        "out": float((back(tokens).logits - found).abs().max()),
        "size": float(expected.abs().max()),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    options = TrainerOptions(
        folder="", model="", data=(), device="cpu", precision="fp32", recompute="none", context_length=120
    )
    here = join(options, 0)
    results = {}
    for name in MODELS:
        (place / name).mkdir()
        results[name] = differences(place / name, options, here)
    (place / "results.json").write_text(json.dumps(results))
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
