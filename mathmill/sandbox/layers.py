"""What a sandbox must hold to be started (policies), and which of its modes holds it here."""

from typing import Literal, get_args

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


SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces is 0: nobody makes user namespaces"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone is 0: only root makes them"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1", "sysctl kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor keeps ordinary users from them"),
}  # fmt: skip


def below_floor(policy: Policy, layers: dict[str, str]) -> str:
    """What is missing for the policy, with the reasons, or nothing."""
    if "session" in layers:
        return layers["session"]
    missing = [group for group in FLOORS[policy] if all(layers.get(layer, "not tried") for layer in group)]
    reasons: dict[str, list[str]] = {}
    for layer in [layer for group in missing for layer in group]:
        reasons.setdefault(layers.get(layer, "not tried"), []).append(layer)
    return ", ".join(f"no {', '.join(names)} ({reason})" for reason, names in reasons.items())


def why_no_namespaces() -> list[str]:
    """What is switched off on this machine."""
    found = []
    for path, (value, words) in SWITCHES.items():
        try:
            with open(path) as file:
                if file.read().strip() == value:
                    found.append(words)
        except OSError:
            pass
    return found


def held(layers: dict[str, str]) -> dict[str, bool]:
    """Which layers hold."""
    return {layer: layers.get(layer, "not tried") == "" for layer in LAYERS}
