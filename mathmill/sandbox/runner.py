"""The inside of a session: a program that runs blocks in one namespace and tells how each ended. Never imported.

It imports next to nothing and runs without `site` (`-S`), since both are paid at each session's start; its arguments are
the folders of installed packages. Descriptor 3 is the supervisor's: commands
come in as marshalled dictionaries (the supervisor is trusted), answers go out as frames of JSON (this process is not).
"""

import _ast
import builtins
import marshal
import os
import sys
import time
from _json import encode_basestring_ascii as quoted
from _sitebuiltins import Quitter
from types import CodeType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHANNEL = 3
VERSION = 1
SEEDED_BY = {"random": ("random", "sympy", "numpy", "scipy", "pandas"), "numpy": ("numpy", "scipy", "pandas")}


def prefer_for_oom() -> None:
    """When the node runs out of memory a session dies first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def read_exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(CHANNEL, count)
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def send(fields: dict[str, str]) -> None:
    """Write one frame; the values are JSON already."""
    body = ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()
    frame = VERSION.to_bytes(1, "big") + len(body).to_bytes(4, "big") + body
    while frame:
        frame = frame[os.write(CHANNEL, frame) :]


def parts_of(code: str, name: str) -> "tuple[CodeType, CodeType | None]":
    """All statements, and the last one by itself where it is an expression that is shown (`;` at the end hides it)."""
    tree: Any = compile(code, name, "exec", _ast.PyCF_ONLY_AST)
    shown = None
    if tree.body and isinstance(tree.body[-1], _ast.Expr) and not code.rstrip().endswith(";"):
        shown = compile(_ast.Expression(tree.body.pop().value), name, "eval")
    return compile(tree, name, "exec"), shown


def seed(code: str, number: int, seeded: set[str]) -> None:
    """Seed the generators that a block may be about to use, once a session, so that a replay repeats them."""
    for module, words in SEEDED_BY.items():
        if module not in seeded and any(word in code for word in words):
            seeded.add(module)
            try:
                if module == "random":
                    import random

                    random.seed(number)
                else:
                    import numpy

                    numpy.random.seed(number)
            except Exception:
                pass


def traceback_of(problem: BaseException, code: str, name: str) -> str:
    """The traceback as Python prints it, without this program's own frames."""
    try:
        import linecache
        import traceback

        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        inner = problem.__traceback__
        while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
            inner = inner.tb_next
        text = "".join(traceback.format_exception(type(problem), problem, inner))
    except Exception:
        text = type(problem).__name__ + "\n"
    return text


def run(code: str, name: str, names: dict) -> str | None:
    """Run a block; the display of its last expression."""
    statements, shown = parts_of(code, name)
    exec(statements, names)
    value = None if shown is None else eval(shown, names)
    return None if value is None else repr(value)


def answer(command: dict, names: dict, seeded: set[str]) -> dict[str, str]:
    """Run the command's block and tell how it ended."""
    code, name, limit = command["code"], f"<cell {command['number']}>", command["limit"]
    status, result, traceback = "ok", None, ""
    began = time.process_time()
    try:
        seed(code, command["seed"], seeded)
        result = run(code, name, names)
    except SystemExit:
        status = "exit"
    except MemoryError as problem:
        problem.__traceback__ = None
        status, traceback = "memory", "MemoryError\n"
    except BaseException as problem:
        status, traceback = "error", traceback_of(problem, code, name)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass
    cut = len(result or "") > limit or len(traceback) > limit
    return {
        "id": str(command["id"]),
        "status": quoted(status),
        "result": "null" if result is None else quoted(str(result)[:limit]),
        "traceback": quoted(traceback[-limit:] if limit else ""),
        "cut": "true" if cut else "false",
        "cpu_s": f"{time.process_time() - began:.6f}",
    }


def main() -> None:
    """Answer commands until the supervisor hangs up."""
    prefer_for_oom()
    folder = os.path.dirname(__file__)
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path += sys.argv[1:]
    sys.argv = [""]
    for name in ("exit", "quit"):
        setattr(builtins, name, Quitter(name, "Ctrl-D"))
    session = ModuleType("__main__")
    session.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = session
    seeded: set[str] = set()
    send({"ready": "true", "cpu_s": f"{time.process_time():.6f}"})
    while True:
        command = marshal.loads(read_exactly(int.from_bytes(read_exactly(4), "big")))
        send(answer(command, session.__dict__, seeded))


if __name__ == "__main__":
    main()
