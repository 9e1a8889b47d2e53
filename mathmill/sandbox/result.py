"""What a block's run came to."""

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "error", "exit", "timeout", "memory", "output", "crash", "lost"]
"""ok; an exception; SystemExit or os._exit; the wall limit; the memory limit; far too much output; killed by a signal
or silenced; the session or the sandbox is gone, and the block may or may not have run."""
State = Literal["live", "replayed", "lost"]
"""The names that the block met: as earlier blocks left them; made again by running those once more; gone."""


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """How a block ended, what it printed, and what its last expression showed."""

    status: Status
    stdout: str
    stderr: str
    """On status `error` it ends with the traceback, whose last line names the exception."""
    result: str | None
    """The last expression as Python displays it; None where there is none or where it is None."""
    wall_s: float
    cpu_s: float
    state: State
    truncated: bool
    """Whether stdout, stderr or result were longer than the limit and are cut."""


def lost(reason: str) -> BlockResult:
    """The result of a block that nobody can answer for."""
    return BlockResult(
        status="lost", stdout="", stderr=reason, result=None, wall_s=0.0, cpu_s=0.0, state="lost", truncated=False
    )


def from_message(message: dict[str, Any]) -> BlockResult:
    """The result that a supervisor sent."""
    return BlockResult(**{name: message[name] for name in BlockResult.__dataclass_fields__})


def too_large(most_mib: int) -> BlockResult:
    """The result of a block that was not sent."""
    return BlockResult(
        status="error",
        stdout="",
        stderr=f"ValueError: the code is larger than {most_mib} MiB",
        result=None,
        wall_s=0.0,
        cpu_s=0.0,
        state="live",
        truncated=False,
    )
