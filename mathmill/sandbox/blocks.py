"""The inside of a session: runs blocks in one namespace and tells how each ended.

Descriptor 3 is the supervisor's: commands come in, answers go out, both as frames of JSON. What is told from here is not to be
trusted: the blocks may have made it say anything.
"""

import _ast
import builtins
import importlib.metadata
import importlib.util
import json
import linecache
import os
import random
import sys
import time
import traceback
from _sitebuiltins import Quitter
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

from mathmill.sandbox.frames import HEADER, VERSION

CHANNEL = 3
MAX_WIDTH, MAX_ITEMS = 79, 1000
"""IPython's own for what it displays."""
display: Callable[[Any], str] = repr
DISPLAY = "repr"
_numpy: Any = None


def prepare() -> None:
    """What all sessions share, done once before they are forked: streams, the display, `__main__`."""
    global display, DISPLAY, _numpy
    _numpy = sys.modules.get("numpy")
    own = {os.path.dirname(os.path.dirname(os.path.dirname(__file__))), os.path.dirname(__file__), ""}
    sys.path[:] = [entry for entry in sys.path if entry not in own]
    sys.argv = [""]
    for name in ("PYTHONPATH", "PWD"):  # ours, and bubblewrap's
        os.environ.pop(name, None)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for descriptor, name, errors in ((1, "stdout", "surrogateescape"), (2, "stderr", "backslashreplace")):
        stream = open(descriptor, "w", buffering=1, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for name in ("exit", "quit"):
        setattr(builtins, name, Quitter(name, "Ctrl-D"))
    pretty, version = _ipython_pretty()
    if pretty is not None:
        display, DISPLAY = pretty, f"IPython {version}"
        display([{"a": (1, 2.5)}, {"b"}, "c", int, None])
    session = ModuleType("__main__")
    session.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = session
    answer({"id": 0, "number": 0, "code": "def f():\n    raise ValueError(1)\nf()", "limit": 1000}, {})


def _ipython_pretty() -> "tuple[Callable[[Any], str] | None, str]":
    """IPython's pretty printer without the rest of IPython, whose import takes a third of a second and many megabytes."""
    try:
        spec = importlib.util.find_spec("IPython")
        assert spec is not None and spec.submodule_search_locations is not None
        hollow = ModuleType("IPython")
        hollow.__path__ = list(spec.submodule_search_locations)
        sys.modules["IPython"] = hollow
        from IPython.lib.pretty import pretty
    except Exception:
        return None, ""
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "IPython"]:
            del sys.modules[name]
    return (
        lambda value: pretty(value, max_width=MAX_WIDTH, max_seq_length=MAX_ITEMS),
        importlib.metadata.version("ipython"),
    )


def serve() -> None:
    """Answer commands until the supervisor hangs up."""
    names = sys.modules["__main__"].__dict__
    began = time.process_time()
    send({"ready": True, "cpu_s": began})
    seeded = False
    while True:
        _, length = HEADER.unpack(read_exactly(HEADER.size))
        command = json.loads(read_exactly(length))
        if not seeded:
            seeded = True
            random.seed(command["seed"])
            if _numpy is not None:
                _numpy.random.seed(command["seed"])
        send(answer(command, names))


def read_exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(CHANNEL, count)
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def send(message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    frame = HEADER.pack(VERSION, len(body)) + body
    while frame:
        frame = frame[os.write(CHANNEL, frame) :]


def answer(command: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """Run the command's block and tell how it ended."""
    code, name, limit = command["code"], f"<cell {command['number']}>", command["limit"]
    status, result, trace = "ok", None, ""
    began = time.process_time()
    try:
        result = run(code, name, names)
    except SystemExit as problem:
        status, trace = "exit", f"SystemExit: {problem.code}\n" if problem.code else ""
    except MemoryError as problem:
        problem.__traceback__ = None
        status, trace = "memory", "MemoryError\n"
    except BaseException as problem:
        status, trace = "error", traceback_of(problem, code, name)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the block closed it, or put something of its own there
            pass
    return {
        "id": command["id"],
        "status": status,
        "result": None if result is None else str(result)[:limit],
        "traceback": trace[-limit:] if limit else "",
        "cut": len(result or "") > limit or len(trace) > limit,
        "cpu_s": time.process_time() - began,
    }


def run(code: str, name: str, names: dict[str, Any]) -> str | None:
    """Run a block; the display of its last expression."""
    statements, shown = parts_of(code, name)
    exec(statements, names)
    value = None if shown is None else eval(shown, names)
    return None if value is None else display(value)


def parts_of(code: str, name: str) -> "tuple[CodeType, CodeType | None]":
    """All statements, and the last one by itself where it is an expression that is shown (`;` at the end hides it)."""
    tree: Any = compile(code, name, "exec", _ast.PyCF_ONLY_AST)
    shown = None
    if tree.body and isinstance(tree.body[-1], _ast.Expr) and not code.rstrip().endswith(";"):
        shown = compile(_ast.Expression(tree.body.pop().value), name, "eval")
    return compile(tree, name, "exec"), shown


def traceback_of(problem: BaseException, code: str, name: str) -> str:
    """The traceback as Python prints it, without this program's own frames."""
    try:
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        inner = problem.__traceback__
        while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
            inner = inner.tb_next
        return "".join(traceback.format_exception(type(problem), problem, inner))
    except Exception:
        return type(problem).__name__ + "\n"
