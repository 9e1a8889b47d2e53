"""Which layers hold on this machine, mode by mode, and which policies can be started."""

import asyncio
import os
import platform
import tempfile

from mathmill.sandbox.layers import MODES, POLICIES, below_floor, why_no_namespaces
from mathmill.sandbox.options import SandboxOptions
from mathmill.sandbox.pool import layers_of, settings_for
from mathmill.sandbox.probe import LAYERS


def main() -> int:
    """Print which layers of protection hold here and why others do not; every one is tried. The exit code is 0 when policy
    `standard` can be started, else 1."""
    found = asyncio.run(_try_all())
    print(f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}, user {os.geteuid()}\n")
    print("layer".ljust(20), *(mode.ljust(14) for mode in MODES))
    for layer in LAYERS:
        print(layer.ljust(20), *(_cell(found[mode], layer).ljust(14) for mode in MODES))
    print()
    for mode in MODES:
        for layer, reason in found[mode].items():
            if reason and "mode has no" not in reason and "not needed" not in reason:
                print(f"{mode}: {layer}: {reason}")
    for hint in why_no_namespaces():
        print(hint)
    for policy in POLICIES:
        modes = [mode for mode in MODES if not below_floor(policy, found[mode])]
        print(f"policy {policy.ljust(9)} {'by ' + ', '.join(modes) if modes else 'cannot be started here'}")
    return int(all(below_floor("standard", found[mode]) for mode in MODES))


def _cell(layers: dict[str, str], layer: str) -> str:
    if "session" in layers:
        return "-"
    reason = layers.get(layer, "not tried")
    return "holds" if not reason else "-" if "mode has no" in reason or "not needed" in reason else "NO"


async def _try_all() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="mathmill-sandbox-") as work:
        for mode in MODES:
            found[mode] = await layers_of(settings_for(mode, SandboxOptions(), work))
    return found
