"""Serve sessions until TERM: python -m mathmill.sandbox [OPTIONS.json]"""

import asyncio
import os
import sys

from mathmill.errors import UserError
from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told
from mathmill.sandbox.supervisor import SandboxOptions, options_from, serve

KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "MATHMILL_NODE_DIR",
        "MATHMILL_DIE_WITH_PARENT", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")  # fmt: skip


def main() -> None:
    """Read the options and serve, in an environment that holds no secret that a session could read in /proc."""
    if os.environ.keys() - set(KEPT):
        os.execve(sys.executable, sys.orig_argv, {name: os.environ[name] for name in KEPT if name in os.environ})
    die_with_parent_if_told()
    asyncio.run(serve(_options(sys.argv[1]) if len(sys.argv) > 1 else SandboxOptions()))


def _options(path: str) -> SandboxOptions:
    try:
        return options_from(section(path, "sandbox"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise UserError(f"{path}: no JSON object with a 'sandbox' object can be read there: {problem!r}") from None


if __name__ == "__main__":
    ended_by(main)
