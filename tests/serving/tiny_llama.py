"""Makes a random Llama-shaped Hugging Face folder: the shape of the shipped model, or smaller."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TAGS = ["<llm-code>", "</llm-code>", "<llm-code-output>", "</llm-code-output>"]
SENTENCES = [
    "Solve the problem. Use Python code where it helps, and put the final answer in \\boxed{}.",
    "Tom has 17 apples and buys 25 more. How many apples does Tom have now? 17 + 25 = 42",
    "Die Straße ist naß; l'été à Paris, 東京と京都 — αβγδ 🙂🙃",
]


def make_tokenizer(vocab_size: int = 420, begin_token: bool = False) -> Tokenizer:
    """A byte-level BPE with the code tags as tokens of their own; 0 is the end of text, 1 its begin."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    if begin_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    return tokenizer


def make_weights(config: dict[str, Any], seed: int, scale: float) -> dict[str, np.ndarray]:
    """Random float32 tensors under Hugging Face's names. A larger scale makes the next token less of a coin toss."""
    generator = np.random.default_rng(seed)
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (generator.standard_normal((rows, columns)) * scale / columns**0.5).astype(np.float32)

    def norm() -> np.ndarray:
        return generator.uniform(0.5, 1.5, hidden).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden) * 4, "model.norm.weight": norm()}
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        weights |= {
            prefix + "input_layernorm.weight": norm(),
            prefix + "self_attn.q_proj.weight": matrix(queries, hidden),
            prefix + "self_attn.k_proj.weight": matrix(keys, hidden),
            prefix + "self_attn.v_proj.weight": matrix(keys, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, queries),
            prefix + "post_attention_layernorm.weight": norm(),
            prefix + "mlp.gate_proj.weight": matrix(inner, hidden),
            prefix + "mlp.up_proj.weight": matrix(inner, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return weights


def make_config(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """config.json as transformers 4 writes it."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 0,
    }
    return config | changes


def _save(path: Path, weights: dict[str, np.ndarray], dtype: str) -> None:
    """A safetensors file: the header's length, the header, the data. Written here since numpy has no bfloat16."""
    name_of = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    for name, value in weights.items():
        upper_half = (value.view(np.uint32) >> 16).astype(np.uint16)
        parts.append((upper_half if dtype == "bfloat16" else value.astype(dtype)).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": name_of[dtype], "shape": value.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def make_model(
    folder: Path, *, seed: int = 0, scale: float = 1.5, dtype: str = "float32", shards: int = 1,
    begin_token: bool = False, rope_parameters: bool = False, **changes: Any,
) -> Path:  # fmt: skip
    """Write the folder: config, weights (of a dtype, in shards), tokenizer. `changes` go to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(begin_token=begin_token)
    config = make_config(tokenizer, **changes)
    weights = make_weights(config, seed, scale)
    if rope_parameters:  # where transformers 5 keeps it
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    if shards == 1:
        _save(folder / "model.safetensors", weights, dtype)
    else:
        names = list(weights)
        files = {name: f"model-{position % shards + 1:05}-of-{shards:05}.safetensors"
                 for position, name in enumerate(names)}  # fmt: skip
        for file in set(files.values()):
            _save(folder / file, {name: weights[name] for name in names if files[name] == file}, dtype)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
