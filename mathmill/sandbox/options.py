"""Options of a sandbox, and the addresses that it listens on."""

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mathmill.errors import UserError
from mathmill.sandbox.forkserver import Isolation
from mathmill.sandbox.layers import MODES, POLICIES, Policy
from mathmill.sandbox.libraries import NAMES

LONGEST_SOCKET_PATH = 107
TOKEN = "MATHMILL_SANDBOX_TOKEN"
"""The environment variable that holds the token of a sandbox on TCP: at least 16 characters."""


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """Options of the sandbox step and of `serve`."""

    address: str = ""
    """unix:PATH or tcp:HOST:PORT (0: any free port); by default `$MATHMILL_NODE_DIR/sandbox/socket`."""
    policy: Policy = "standard"
    """The least that must hold: strict, standard or trusted."""
    isolation: Isolation | Literal["auto"] = "auto"
    """namespaces, bubblewrap, reduced, or auto: the first of these that reaches the policy's floor."""
    workers: int = 0
    """Blocks that run at the same time; 0: one a processor."""
    max_sessions: int = 0
    """Sessions with a process; further ones take the place of the one idle longest, which is replayed later. 0: as many as
    half of the free memory holds, at most 1024."""
    memory_mb: int = 2048
    """Address space of a session beyond what it begins with."""
    max_output: int = 10_000
    """Characters kept of stdout, stderr and result, where a client does not say."""
    libraries: str = ",".join(NAMES)
    """Imported ahead, for all sessions; others a block imports by itself."""
    spares: int = 4
    """Forked processes that wait for a session."""
    grace_s: float = 2.0
    """How long the sessions of a client that hung up wait for it to come back."""
    until_stdin_closes: bool = False
    """End when standard input ends, as it does when the process that started this one dies, and remove the socket's folder."""


CHOICES = {"policy": POLICIES, "isolation": ("auto", *MODES)}


def options_from(section: dict[str, Any]) -> SandboxOptions:
    """Options from a job's JSON or from flags; a UserError names an unknown key or a value that is not to be had."""
    known = {option.name for option in fields(SandboxOptions)}
    unknown = sorted(section.keys() - known)
    if unknown:
        shown = sorted(known - {"until_stdin_closes"})
        raise UserError(f"sandbox: unknown option '{unknown[0]}'. Known: {', '.join(shown)}")
    for option in fields(SandboxOptions):
        value, kind = section.get(option.name, option.default), type(option.default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"sandbox: option '{option.name}' is {value!r}; it must be of type {kind.__name__}")
        if option.name in CHOICES and value not in CHOICES[option.name]:
            raise UserError(f"sandbox: no {option.name} '{value}'. Known: {', '.join(CHOICES[option.name])}")
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise UserError(f"sandbox: option '{option.name}' is {value}; give a number, 0 or more")
    options = SandboxOptions(**section)
    strange = [name for name in options.libraries.split(",") if name not in ("", *NAMES)]
    if strange:
        raise UserError(f"sandbox: no library '{strange[0]}' is imported ahead. Known: {', '.join(NAMES)}")
    return options


@dataclass(frozen=True)
class Address:
    """Where a sandbox listens: a Unix socket's path, or a host and a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """unix:PATH, PATH, or tcp:HOST:PORT; UserError for anything else and for a path too long for a socket."""
    if text.startswith("tcp:"):
        host, _, port = text.removeprefix("tcp:").rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise UserError(f"sandbox address '{text}': write tcp:HOST:PORT, with a PORT from 0 to 65535")
        return Address(host=host.strip("[]"), port=int(port))
    name = text.removeprefix("unix:")
    if not name or (name == text and "/" not in text) or (":" in name and "/" not in name):
        raise UserError(f"sandbox address '{text}': write unix:PATH or tcp:HOST:PORT")
    path = Path(name).absolute()
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        raise UserError(f"sandbox: the socket path {path} has {length} bytes, at most 107 work; use a shorter folder")
    return Address(path=path)


def address_of(options: SandboxOptions) -> Address:
    """Where to listen; a UserError where nothing says so."""
    node_folder = os.environ.get("MATHMILL_NODE_DIR")
    if not options.address and not node_folder:
        raise UserError(
            "sandbox: no address; give --address unix:PATH or tcp:HOST:PORT, or set the environment variable MATHMILL_NODE_DIR"
        )
    return read_address(options.address or f"{node_folder}/sandbox/socket")
