"""A ModelShape as a megatron-core model: process groups, transformer configuration, rotary embedding."""

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel.random import initialize_rng_tracker, model_parallel_cuda_manual_seed
from megatron.core.transformer.transformer_config import TransformerConfig

from mathmill.training.options import TrainerOptions
from mathmill.training.shape import ModelShape

try:  # in NVIDIA's images; its attention knows packed rows, and never writes the scores down
    import transformer_engine  # noqa: F401

    HAVE_TE = True
except ImportError:
    HAVE_TE = False


@dataclass(frozen=True)
class Place:
    """Where this process stands among the others."""

    rank: int
    world: int
    tp_rank: int
    tp: int
    pp_rank: int
    pp: int
    dp_rank: int
    dp: int
    device: torch.device
    transformer_engine: bool


def join(options: TrainerOptions, local_rank: int) -> Place:
    """Start the process groups; the environment is torchrun's."""
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        from mathmill.training.cpu import use_cpu

        use_cpu()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(minutes=options.group_timeout_minutes)
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=options.tensor_parallel,
        pipeline_model_parallel_size=options.pipeline_parallel,
        expert_model_parallel_size=options.expert_parallel,
        distributed_timeout_minutes=math.ceil(options.group_timeout_minutes),
        create_gloo_process_groups=True,
    )
    initialize_rng_tracker(inference_rng_tracker=not on_gpu)
    return Place(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp=options.tensor_parallel,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp=options.pipeline_parallel,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp=parallel_state.get_data_parallel_world_size(),
        device=torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"),
        transformer_engine=on_gpu and HAVE_TE,
    )


def seed_step(options: TrainerOptions, place: Place, step: int) -> None:
    """Dropout's random numbers of a step: a function of seed, step and place, so that a restart needs no saved state."""
    seed = (options.seed * 1_000_003 + step) * 64 + place.pp_rank
    seed = (seed * 4096 + place.dp_rank) % (1 << 31)
    if options.device == "cuda":
        model_parallel_cuda_manual_seed(seed)
    torch.manual_seed(seed)


def transformer_config(shape: ModelShape, options: TrainerOptions, place: Place) -> TransformerConfig:
    """megatron-core's configuration of a shape."""
    return TransformerConfig(
        **_architecture(shape, options),
        **_experts(shape, options, place),
        **_layout(options, place),
        **_arithmetic(options, place),
    )


def _architecture(shape: ModelShape, options: TrainerOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_size,
        "num_attention_heads": shape.num_heads,
        "num_query_groups": shape.num_kv_heads,
        "kv_channels": shape.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.norm_eps,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "hidden_dropout": options.hidden_dropout,
        "attention_dropout": options.attention_dropout,
    }
    if shape.window is not None and shape.window < options.context_length:
        settings["window_size"] = (shape.window - 1, 0)
    return settings


def _experts(shape: ModelShape, options: TrainerOptions, place: Place) -> dict[str, Any]:
    if not shape.num_experts:
        return {}
    return {
        "num_moe_experts": shape.num_experts,
        "moe_router_topk": shape.experts_per_token,
        "moe_router_load_balancing_type": "aux_loss" if options.moe_aux_loss else "none",
        "moe_aux_loss_coeff": options.moe_aux_loss,
        "moe_token_dispatcher_type": "alltoall" if options.device == "cuda" else "allgather",
        "moe_grouped_gemm": place.transformer_engine,
        "moe_ffn_hidden_size": shape.ffn_size,
    }


def _layout(options: TrainerOptions, place: Place) -> dict[str, Any]:
    recompute: dict[str, Any] = {}
    if options.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif options.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {
        "tensor_model_parallel_size": place.tp,
        "pipeline_model_parallel_size": place.pp,
        "expert_model_parallel_size": options.expert_parallel,
        "sequence_parallel": options.sequence_parallel and place.tp > 1,
        "batch_p2p_sync": False,
        "deallocate_pipeline_outputs": True,  # its backward is also the one under which cpu.py sees recomputation
        **recompute,
    }


def _arithmetic(options: TrainerOptions, place: Place) -> dict[str, Any]:
    """Number types and kernels. Fusions need a GPU, and megatron-core's own of them Transformer Engine."""
    on_gpu, bf16 = options.device == "cuda", options.precision == "bf16"
    return {
        "params_dtype": torch.bfloat16 if bf16 else torch.float32,
        "pipeline_dtype": torch.bfloat16 if bf16 else torch.float32,
        "bf16": bf16,
        "attention_softmax_in_fp32": True,
        "calculate_per_token_loss": True,
        "use_cpu_initialization": not on_gpu,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": on_gpu,
        "bias_activation_fusion": on_gpu,
        "apply_rope_fusion": place.transformer_engine,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "cross_entropy_loss_fusion": False,
    }


def build_model(shape: ModelShape, options: TrainerOptions, place: Place) -> GPTModel:
    """This rank's stage of the model, on its device; its weights are not set."""
    config = transformer_config(shape, options, place)
    make_spec = get_gpt_layer_with_transformer_engine_spec if place.transformer_engine else get_gpt_layer_local_spec
    spec = make_spec(
        num_experts=shape.num_experts or None,
        moe_grouped_gemm=bool(shape.num_experts and place.transformer_engine),
        **({} if place.transformer_engine else {"normalization": "RMSNorm"}),
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=shape.vocab_size,
        max_sequence_length=options.context_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=int(shape.rope["rope_theta"]),
    )
    model.rotary_pos_emb.inv_freq = rope_frequencies(shape).to(place.device)
    return model.to(place.device)


def rope_frequencies(shape: ModelShape) -> torch.Tensor:
    """Inverse frequencies [head_dim / 2] of the shape's rotary embedding, in float32.

    linear: all divided by the factor. llama3: long waves divided, short ones kept, those between blended, as Llama 3.1's
    release describes it (config keys factor, low_freq_factor, high_freq_factor, original_max_position_embeddings).
    megatron-core's own switch knows one set of these numbers only.
    """
    size, rope = shape.head_dim, shape.rope
    frequencies = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    if rope["rope_type"] == "default":
        return frequencies
    factor = float(rope["factor"])
    if rope["rope_type"] == "linear":
        return frequencies / factor
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    waves_in_context = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((waves_in_context - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor
