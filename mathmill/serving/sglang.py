"""SGLang: `python -m sglang.launch_server`, on several nodes one task each.

Everything was read in the wheel of release 0.5.23 (not run: it needs a GPU). Sources, below sglang/srt/:
  [fields]   arg_groups/fields/*.py                    options; arg_utils.py turns `tp_size` into `--tp-size`
  [config]   utils/server_args_config_parser.py        --config FILE.yaml: options as keys, the command line wins
  [protocol] entrypoints/openai/protocol.py            CompletionRequest, without `extra`: unknown fields are dropped
  [http]     entrypoints/http_server.py                routes; utils/auth.py leaves /health open
  [seed]     sampling/sampling_batch_info.py
"""

import json

from mathmill.serving.kind import Kind, Launch

FIELDS = frozenset({
    # [protocol]; fields of disaggregated or multimodal serving are left out
    "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
    "presence_penalty", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
    "return_token_ids", "top_k", "min_p", "min_tokens", "json_schema", "regex", "ebnf", "repetition_penalty",
    "stop_token_ids", "stop_regex", "no_stop_trim", "ignore_eos", "skip_special_tokens", "response_format",
    "custom_params", "custom_logit_processor", "rid", "extra_key", "cache_salt", "priority", "custom_labels",
})  # fmt: skip


def command(launch: Launch) -> list[str]:
    """The server's command, one for each node."""
    words = [
        "python3", "-m", "sglang.launch_server",
        "--model-path", launch.model,                         # [fields] model.py
        "--host", launch.bind,                                # [fields] serving.py, default 127.0.0.1
        "--port", str(launch.port),                           # [fields] serving.py, default 30000
        "--served-model-name", launch.served_name,            # [fields] serving.py
        "--tp-size", str(launch.gpus * launch.nodes),         # [fields] parallel.py: over all nodes
    ]  # fmt: skip
    if launch.context_length is not None:
        words += ["--context-length", str(launch.context_length)]  # [fields] model.py
    if launch.nodes > 1:
        words += ["--nnodes", str(launch.nodes), "--node-rank", str(launch.node_rank)]  # [fields] parallel.py
        words += ["--dist-init-addr", str(launch.rendezvous)]  # [fields] parallel.py: HOST:PORT
    if launch.token_file is not None:
        words += ["--config", launch.token_file]  # [config] one only
    return [*words, *launch.arguments]


def token_file_text(token: str) -> str:
    """A config file with the token: there is no environment variable for it, and a command line is no place for one."""
    return json.dumps({"api-key": token})  # JSON is YAML; [fields] serving.py: api_key


KIND = Kind(
    name="sglang",
    version="0.5.23",
    command=command,
    fields=FIELDS,
    refuses_unknown_fields=False,  # [protocol]
    # [seed] the tensor of seeds is made only with --enable-deterministic-inference, an argument the user may add
    seed_honoured=False,
    several_samples=True,  # entrypoints/openai/serving_completions.py passes n on
    logprobs=True,  # [protocol]
    takes_name=True,  # [fields]
    checks_model=False,  # entrypoints/openai/serving_base.py looks for an adapter's name in it, nothing more
    health_path="/health",  # [http] generates a token first, so an answer takes a second
    token_file_text=token_file_text,
    needs_rendezvous=True,
)
