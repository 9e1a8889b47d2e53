"""vLLM: `vllm serve`, on several nodes one task each.

Everything was read in the wheel of release 0.33.0 (not run: it needs a GPU). Sources, below vllm/:
  [engine]   engine/arg_utils.py                       the model's and the parallel options
  [frontend] entrypoints/common/cli_args.py            host, port, model_tag
  [protocol] entrypoints/openai/completion/protocol.py CompletionRequest
  [base]     entrypoints/serve/engine/protocol.py      OpenAIBaseModel: `extra="allow"`, unknown fields are logged
  [auth]     entrypoints/serve/middleware/             register.py reads VLLM_API_KEY, authenticate.py guards /v1
  [check]    entrypoints/serve/engine/serving.py       _check_model
and, read in the repository vllm-project/vllm at 096bd6a:
  [nodes]    docs/serving/parallelism_scaling.md       "Running vLLM with MultiProcessing"; needs no Ray
  [port]     vllm/config/parallel.py at 00193b8       master_port, default 29501
"""

from mathmill.serving.kind import Kind, Launch

FIELDS = frozenset({
    # [protocol]; fields of disaggregated or multimodal serving are left out
    "model", "prompt", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
    "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
    "use_beam_search", "top_k", "min_p", "repetition_penalty", "length_penalty", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens",
    "truncate_prompt_tokens", "truncation_side", "allowed_token_ids", "prompt_logprobs", "bad_words",
    "add_special_tokens", "response_format", "structured_outputs", "priority", "request_id",
    "return_tokens_as_token_ids", "return_token_ids", "cache_salt", "repetition_detection", "thinking_token_budget",
})  # fmt: skip


def command(launch: Launch) -> list[str]:
    """The server's command, one for each node: tensor parallel in a node, pipeline parallel over nodes."""
    words = [
        "vllm", "serve", launch.model,                        # [frontend] model_tag
        "--host", launch.bind,                                # [frontend] default: none
        "--port", str(launch.port),                           # [frontend] default 8000
        "--served-model-name", launch.served_name,            # [engine]
        "--tensor-parallel-size", str(launch.gpus),           # [engine]
    ]  # fmt: skip
    if launch.context_length is not None:
        words += ["--max-model-len", str(launch.context_length)]  # [engine]
    if launch.nodes > 1:
        host, _, port = str(launch.rendezvous).rpartition(":")
        words += ["--pipeline-parallel-size", str(launch.nodes)]  # [nodes]
        words += ["--nnodes", str(launch.nodes), "--node-rank", str(launch.node_rank)]  # [nodes]
        words += ["--master-addr", host, "--master-port", port]  # [nodes], [port]: others may hold its default
        words += ["--headless"] if launch.node_rank else []  # [nodes] the first alone answers requests
    return [*words, *launch.arguments]


KIND = Kind(
    name="vllm",
    version="0.33.0",
    command=command,
    fields=FIELDS,
    refuses_unknown_fields=False,  # [base]
    seed_honoured=True,  # sampling_params.py: "Random seed to use for the generation", passed on by [protocol]
    several_samples=True,  # [protocol]
    logprobs=True,  # [protocol]
    takes_name=True,  # [engine] --served-model-name
    checks_model=True,  # [check] 404
    health_path="/health",  # entrypoints/serve/instrumentator/health.py
    needs_rendezvous=True,
    token_variable="VLLM_API_KEY",  # [auth] when --api-key is not given; /health stays open
)
