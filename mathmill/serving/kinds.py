"""The server kinds by name. Standard library only: this runs inside foreign containers."""

from mathmill.errors import UserError
from mathmill.serving import bundled, openai, sglang, trtllm, vllm
from mathmill.serving.kind import Kind

KINDS: dict[str, Kind] = {kind.name: kind for kind in (bundled.KIND, trtllm.KIND, vllm.KIND, sglang.KIND, openai.KIND)}


def find_kind(name: str) -> Kind:
    """The kind of this name. A UserError names those that are known."""
    if name not in KINDS:
        raise UserError(f"no server kind '{name}'. Known: {', '.join(KINDS)}")
    return KINDS[name]
