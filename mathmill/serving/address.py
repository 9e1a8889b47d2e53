"""Address files: where a server of a run answers. Standard library only."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mathmill.errors import UserError
from mathmill.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server that is ready."""

    url: str
    """http://HOST:PORT, without /v1."""
    kind: str
    model: str
    """The name requests must give; holds a nonce where the kind allows, so that a stranger's server refuses it."""
    token: str | None = field(default=None, repr=False)
    """Bearer token for requests."""
    context_length: int | None = None
    pool: str | None = None
    """The model's name where all clients of the run may use it; None: it is its own job's."""


def write_address(path: Path, address: Address) -> None:
    """Announce a server. The file is for its owner only: it holds the token."""
    write_whole(path, json.dumps(asdict(address)) + "\n", mode=0o600)


def read_address(path: Path) -> Address:
    """Read an address file. A UserError says what is wrong with it."""
    try:
        return Address(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"no address file {path}; is its server running and ready?") from None
    except (ValueError, TypeError) as problem:
        raise UserError(f"{path} is not an address file: {problem}") from None
