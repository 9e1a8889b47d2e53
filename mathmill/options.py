"""One frozen dataclass is a script's flags, its documentation and the JSON file that reaches its worker."""

import contextlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mathmill.errors import DISK_FAILURES, UserError, said_by_disk

Options = TypeVar("Options")


def parse(kind: type[Options], arguments: list[str] | None = None) -> Options:
    """Read the flags of a dataclass (default: the command line). Ends with exit code 2 on a flag that it does not know."""
    import tyro

    return tyro.cli(kind, args=arguments, use_underscores=True, description=inspect.getdoc(kind))


def script(kind: type[Options], run: Callable[[Options], int | None]) -> None:
    """Parse the flags, run, and end the process: 0, `run`'s own code, 2 for a user's mistake, 130 for Ctrl-C."""
    ended_by(lambda: run(parse(kind)))


def ended_by(run: Callable[[], int | None]) -> None:
    """Run and end the process with its code; a user's mistake is one line and exit code 2."""
    try:
        code = run() or 0
        sys.stdout.flush()
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        sys.stdout = None
        code = 141
    except OSError as problem:
        if problem.errno not in DISK_FAILURES:
            raise
        with contextlib.suppress(OSError):  # the log may lie on the same disk
            print(f"error: {said_by_disk(problem)}", file=sys.stderr)
        code = 2
    sys.exit(code)


def section(path: str | Path, name: str) -> dict[str, Any]:
    """One step's options from a job's JSON file."""
    return json.loads(Path(path).read_text())[name]
