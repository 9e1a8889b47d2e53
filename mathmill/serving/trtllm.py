"""TensorRT-LLM: `trtllm-serve` on one node, `trtllm-llmapi-launch trtllm-serve` under MPI on several.

Release 1.2.1 (April 2026) is not installable from the package index, so nothing here was run or read from its wheel.
Sources, all in the repository NVIDIA/TensorRT-LLM, revisions of its main branch around 1.2:
  [serve]    tensorrt_llm/commands/serve.py           the command's options
  [protocol] tensorrt_llm/serve/openai_protocol.py    CompletionRequest; `extra="forbid"` in OpenAIBaseModel
  [server]   tensorrt_llm/serve/openai_server.py      routes, the model's name
  [launch]   tensorrt_llm/llmapi/trtllm-llmapi-launch
  [slurm]    examples/llm-api/llm_mgmn_trtllm_serve.sh
  [notes]    docs/source/release-notes.md, section 1.2
"""

import re

from mathmill.errors import UserError
from mathmill.serving.kind import Kind, Launch

FIELDS = frozenset({
    # [protocol], fields that a revision before 1.2 and one after it both have
    "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n",
    "presence_penalty", "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user",
    "use_beam_search", "top_k", "top_p_min", "min_p", "repetition_penalty", "length_penalty", "early_stopping",
    "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens",
    "spaces_between_special_tokens", "truncate_prompt_tokens", "return_context_logits", "detokenize",
    "add_special_tokens", "response_format", "disaggregated_params",
    # `suffix` is a field too, but any value is refused
})  # fmt: skip


def command(launch: Launch) -> list[str]:
    """The server's command; on several nodes the same in every task, one task a GPU."""
    serve = [
        "trtllm-serve", launch.model,                         # [serve] argument MODEL: a Hugging Face folder
        "--host", launch.bind,                                # [serve] default localhost: not reachable from other nodes
        "--port", str(launch.port),                           # [serve] bound before the model is loaded
        "--tp_size", str(launch.gpus * launch.nodes),         # [serve] alias of --tensor_parallel_size
    ]  # fmt: skip
    if launch.context_length is not None:
        serve += ["--max_seq_len", str(launch.context_length)]  # [serve] prompt and outputs together
    if launch.nodes == 1:
        return [*serve, *launch.arguments]
    serve += ["--gpus_per_node", str(launch.gpus), *launch.arguments]  # [serve] else guessed from what rank 0 sees
    odd = [word for word in serve if not re.fullmatch(r"[^\s*?\[\]]+", word)]
    if odd:
        # [launch] runs its arguments as an unquoted variable: the shell would split and expand them again.
        raise UserError(
            f"trtllm-llmapi-launch cannot pass the argument {odd[0]!r} on; put it in a file and use --config"
        )
    return ["trtllm-llmapi-launch", *serve]  # [slurm]; experimental, says its comment


KIND = Kind(
    name="trtllm",
    version="1.2",
    command=command,
    fields=FIELDS,
    refuses_unknown_fields=True,  # [protocol]
    # SamplingParams takes it, but the default sampler honours it only since pull request 17172, merged in August 2026,
    # after 1.2.1.
    seed_honoured=False,
    several_samples=True,  # [notes] since 1.2, when PyTorch runs the model, the default
    logprobs=True,  # [protocol] since 1.2; before, CompletionRequest refused it
    takes_name=False,  # [serve] has no option for it; [server] serves the folder's name
    checks_model=False,  # [server] openai_completion does not look at request.model
    health_path="/health",  # [server]
    token_variable=None,  # none in [serve]; issue 9950 asks for it
    task_per_gpu=True,  # [slurm] as many MPI processes as GPUs
    mpi="pmix",  # [slurm]
)
