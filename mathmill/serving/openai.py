"""A server that is already there and speaks OpenAI's /v1/completions; nothing is started.

The fields are those of OpenAI's reference for the endpoint, and of it only what every server named here knows.
"""

from mathmill.errors import UserError
from mathmill.serving.kind import Kind, Launch

FIELDS = frozenset({
    "model", "prompt", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty",
    "seed", "stop", "stream", "stream_options", "temperature", "top_p", "user",
})  # fmt: skip


def command(launch: Launch) -> list[str]:
    """There is none."""
    raise UserError("a server of kind openai is not started by a job; give its address with --server_address URL")


KIND = Kind(
    name="openai",
    version="not verified",
    command=command,
    fields=FIELDS,
    refuses_unknown_fields=True,  # not verified: it may, so nothing else is sent
    seed_honoured=None,
    several_samples=True,  # part of the API; not verified of any one server
    logprobs=True,  # part of the API; not verified of any one server
    takes_name=False,
    checks_model=None,
    health_path="/v1/models",  # /health is no part of the API
)
