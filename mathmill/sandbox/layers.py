"""What a sandbox must hold to be started (policies), and which of its modes holds it here."""

from typing import Literal, get_args

from mathmill.errors import UserError
from mathmill.sandbox.forkserver import Isolation
from mathmill.sandbox.probe import LAYERS

Policy = Literal["strict", "standard", "trusted"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
MODES: tuple[Isolation, ...] = get_args(Isolation)
PROCESS = ("system calls", "no capabilities", "no new privileges", "limits")
FLOORS: dict[Policy, tuple[tuple[str, ...], ...]] = {
    "strict": tuple((layer,) for layer in ("own users", "own processes", "own files", "own network", *PROCESS)),
    "standard": (*((layer,) for layer in PROCESS), ("own files", "files: Landlock")),
    "trusted": (),
}
"""Of each group one layer must hold. strict: nothing but the kernel itself between sessions. standard: no new processes, no
network, no files but a session's own and the libraries. trusted: whatever is to be had."""


def check_policy(policy: str) -> None:
    """UserError for a policy that is none."""
    if policy not in POLICIES:
        raise UserError(f"no sandbox policy '{policy}'. Known: {', '.join(POLICIES)}")


def below_floor(policy: Policy, layers: dict[str, str]) -> str:
    """What is missing for the policy, with the reasons, or nothing."""
    if "session" in layers:
        return layers["session"]
    missing = [group for group in FLOORS[policy] if all(layers.get(layer, "not tried") for layer in group)]
    return "; ".join(" or ".join(f"{layer} ({layers.get(layer, 'not tried')})" for layer in group) for group in missing)


def held(layers: dict[str, str]) -> dict[str, bool]:
    """Which layers hold."""
    return {layer: layers.get(layer, "not tried") == "" for layer in LAYERS}
