"""A sandbox by itself: python -m mathmill.sandbox serve | run FILE.py | doctor"""

import argparse
import asyncio
import math
import os
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from mathmill.errors import UserError
from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told
from mathmill.sandbox import doctor
from mathmill.sandbox.client import Sandbox
from mathmill.sandbox.options import CHOICES, TOKEN, SandboxOptions, options_from
from mathmill.sandbox.result import BlockResult
from mathmill.sandbox.supervisor import serve

KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "MATHMILL_NODE_DIR", TOKEN,
        "MATHMILL_DIE_WITH_PARENT", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")  # fmt: skip
CELL = re.compile(r"^# ?%%.*$", re.MULTILINE)


def main() -> int:
    """Do what the command line says; a lone file of JSON is a job's options, and means `serve`."""
    arguments = sys.argv[1:]
    if arguments[:1] and arguments[0].endswith(".json"):
        arguments = ["serve", "--options", *arguments]
    flags = _parser().parse_args(arguments or ["--help"])
    return flags.do(flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mathmill.sandbox", description="Run Python that nobody has read.")
    commands = parser.add_subparsers(title="commands", required=True)
    serve_ = commands.add_parser("serve", help="answer clients until TERM or Ctrl-C", description=_serve.__doc__)
    serve_.add_argument("--options", metavar="FILE.json", help="a job's options, under 'sandbox'; flags win")
    for option in fields(SandboxOptions):
        if option.name != "until_stdin_closes":
            _add_flag(serve_, option.name, type(option.default), option.default)
    serve_.set_defaults(do=_serve)
    run = commands.add_parser("run", help="run a file's code and show what it prints", description=_run.__doc__)
    run.add_argument("file", help="Python code, or - for standard input; lines '# %%%%' divide it into blocks")
    run.add_argument("--timeout", type=float, default=10.0, help="seconds a block may take [10]")
    for name in ("policy", "isolation", "max_output", "memory_mb"):
        default = getattr(SandboxOptions(), name)
        _add_flag(run, name, type(default), default)
    run.set_defaults(do=_run)
    doctor_ = commands.add_parser("doctor", help="which layers hold here, and why not", description=doctor.main.__doc__)
    doctor_.set_defaults(do=lambda flags: doctor.main())
    return parser


def _add_flag(parser: argparse.ArgumentParser, name: str, kind: type, default: Any) -> None:
    choices = CHOICES.get(name)
    words = f" ({', '.join(choices)})" if choices else ""
    parser.add_argument(
        f"--{name}", type=kind, default=None, metavar=name.upper(), help=f"{_HELP[name]}{words} [{default}]"
    )


_HELP = {
    "address": "unix:PATH or tcp:HOST:PORT; port 0 is any free one; without it $MATHMILL_NODE_DIR/sandbox/socket",
    "policy": "the least that must hold",
    "isolation": "how sessions are held; auto takes the first that reaches the policy's floor",
    "workers": "blocks that run at the same time; 0: one a processor",
    "max_sessions": "sessions with a process; more take turns and are replayed; 0: as many as half of the free memory holds",
    "memory_mb": "address space of a session beyond what it begins with",
    "max_output": "characters kept of stdout, stderr and result, where a client does not say",
    "libraries": "imported ahead for all sessions, divided by commas",
    "spares": "forked processes that wait for a session",
    "grace_s": "seconds that the sessions of a client that hung up wait for it",
}


def _serve(flags: argparse.Namespace) -> int:
    """Serve sessions until TERM. On TCP the environment variable MATHMILL_SANDBOX_TOKEN holds what clients must know."""
    if os.environ.keys() - set(KEPT):  # a session must find no secret, even where it can read /proc
        os.execve(sys.executable, sys.orig_argv, {name: os.environ[name] for name in KEPT if name in os.environ})
    die_with_parent_if_told()
    given = {option.name: getattr(flags, option.name, None) for option in fields(SandboxOptions)}
    told = _options(flags.options) if flags.options else {}
    asyncio.run(serve(options_from(told | {name: value for name, value in given.items() if value is not None})))
    return 0


def _options(path: str) -> dict[str, Any]:
    try:
        return dict(section(path, "sandbox"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        reason = getattr(problem, "strerror", None) or repr(problem)
        raise UserError(f"{path}: no JSON object with a 'sandbox' object can be read there: {reason}") from None


def _run(flags: argparse.Namespace) -> int:
    """Run a file block by block in one session. The exit code is 0 when every block ended as ok, else 1."""
    try:
        code = sys.stdin.read() if flags.file == "-" else Path(flags.file).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{flags.file}: cannot be read: {getattr(problem, 'strerror', problem)}") from None
    names = ("policy", "isolation", "max_output", "memory_mb")
    given = {name: value for name in names if (value := getattr(flags, name)) is not None}
    if not 0 < flags.timeout < math.inf:
        raise UserError(f"--timeout {flags.timeout}: give seconds, more than 0")
    blocks = [block for block in CELL.split(code) if block.strip()]
    failed = 0
    with Sandbox.start(spares=0, **given) as sandbox, sandbox.session() as session:
        for number, block in enumerate(blocks, 1):
            result = session.run(block, timeout=flags.timeout)
            _show(result, f"block {number}: " if len(blocks) > 1 else "")
            failed |= result.status not in ("ok", "exit") or "SystemExit: " in result.stderr
    return int(failed)


def _show(result: BlockResult, which: str) -> None:
    for text, stream in ((result.stdout, sys.stdout), (result.stderr, sys.stderr)):
        print(text, end="" if text.endswith("\n") or not text else "\n", file=stream, flush=True)
    if result.result is not None:
        print(result.result, flush=True)
    if result.truncated:
        print(f"[{which}output cut; --max_output keeps more]", file=sys.stderr)
    if result.status not in ("ok", "error"):
        after = f" after {result.wall_s:.1f} s" if result.status == "timeout" else ""
        print(f"[{which}{result.status}{after}]", file=sys.stderr)


if __name__ == "__main__":
    ended_by(main)
