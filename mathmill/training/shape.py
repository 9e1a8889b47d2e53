"""The shape of a model, as the config.json of its Hugging Face folder says; refuses what the trainer would compute wrongly."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathmill.errors import UserError

MODEL_TYPES = ("llama", "mistral", "mixtral")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a Llama, Mistral or Mixtral."""

    model_type: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope: dict[str, Any]
    """`rope_theta`, `rope_type`, and what that type needs."""
    tied_embeddings: bool
    window: int | None
    """Positions that attention looks back, where it is limited (Mistral)."""
    num_experts: int
    """0: a dense model."""
    experts_per_token: int
    end_token: int | None

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer outside its experts."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        dense = self.hidden_size * self.num_experts if self.num_experts else self.expert_parameters
        return attention + dense + 2 * self.hidden_size

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert of one layer, or of a dense layer's only one."""
        return 3 * self.hidden_size * self.ffn_size

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        layer = self.layer_parameters + self.num_experts * self.expert_parameters
        return embeddings + self.num_layers * layer + self.hidden_size

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations to train one token of a text of this length, without recomputation.

        Six for each parameter that a token meets in a product, and for attention 12 x layers x width x positions seen,
        of which a causal mask leaves half (Narayanan et al., arXiv 2104.04473, appendix).
        """
        met = self.num_layers * (self.layer_parameters + self.experts_per_token * self.expert_parameters)
        seen = min(length, self.window or length)
        attention = 6 * self.num_layers * self.num_heads * self.head_dim * seen
        return 6.0 * (met + self.vocab_size * self.hidden_size) + attention


def read_shape(folder: Path) -> ModelShape:
    """The shape of a Hugging Face folder. UserError where there is none, or one that is not trained here."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is no Hugging Face model folder (no config.json)") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} is not readable as JSON: {problem}") from None
    return shape_of(config, str(path))


def shape_of(config: dict[str, Any], where: str) -> ModelShape:
    """The shape that a config.json's content describes; `where` stands before refusals."""
    # transformers 5 writes rope_parameters; before, rope_theta stood at the top and rope_scaling beside it
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10000.0)}
    rope |= config.get("rope_scaling") or {}
    rope |= config.get("rope_parameters") or {}
    rope["rope_type"] = rope.get("rope_type", rope.pop("type", "default"))
    _refuse_other_shapes(config, rope, where)
    try:
        heads = config["num_attention_heads"]
        mixtral = config["model_type"] == "mixtral"
        end = config.get("eos_token_id")
        return ModelShape(
            model_type=config["model_type"],
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            ffn_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            context_length=config.get("max_position_embeddings", 2048),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            rope=rope,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            window=config.get("sliding_window") if config["model_type"] != "llama" else None,
            num_experts=config["num_local_experts"] if mixtral else 0,
            experts_per_token=config["num_experts_per_tok"] if mixtral else 0,
            end_token=end[0] if isinstance(end, list) and end else end if isinstance(end, int) else None,
        )
    except KeyError as missing:
        raise UserError(f"{where}: no {missing}; is this the config.json of a Llama, Mistral or Mixtral?") from None


def _refuse_other_shapes(config: dict[str, Any], rope: dict[str, Any], where: str) -> None:
    allowed = {
        "model_type": (config.get("model_type"), MODEL_TYPES),
        "hidden_act": (config.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (bool(config.get("attention_bias")), (False,)),
        "mlp_bias": (bool(config.get("mlp_bias")), (False,)),
        "rope_type": (rope["rope_type"], ROPE_TYPES),
        "quantization_config": (config.get("quantization_config"), (None,)),
    }
    for field, (found, known) in allowed.items():
        if found not in known:
            raise UserError(f"{where}: {field} is {found!r}; the trainer knows {', '.join(map(repr, known))}")
