"""Our own server for Llama-shaped models, and the facts about it. The facts need the standard library only."""

import sys

from mathmill.serving.kind import Kind, Launch

TOKEN_VARIABLE = "MATHMILL_SERVER_TOKEN"
FIELDS = frozenset({
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop", "logprobs",
    "ignore_eos", "stream", "stream_options",
})  # fmt: skip


def command(launch: Launch) -> list[str]:
    """The server's command. It uses no GPU; of several nodes the first serves alone, and the others stand by."""
    if launch.node_rank:
        return [sys.executable, "-m", "mathmill.serving.bundled", launch.model, "--stand_by"]
    words = [sys.executable, "-m", "mathmill.serving.bundled", launch.model, "--host", launch.bind]
    words += ["--port", str(launch.port), "--served_name", launch.served_name]
    if launch.context_length is not None:
        words += ["--context_length", str(launch.context_length)]
    return [*words, *launch.arguments]


KIND = Kind(
    name="bundled",
    version="this one",
    command=command,
    fields=FIELDS,
    refuses_unknown_fields=True,
    seed_honoured=True,
    several_samples=True,
    logprobs=True,
    takes_name=True,
    checks_model=True,
    token_variable=TOKEN_VARIABLE,
)
