"""Blocks for the soak: benign ones with their answers, hostile ones with the statuses that they may end with."""

import random
from dataclasses import dataclass

PRIMES = (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079, 10091, 10093)
ANY_BUT_LOST = frozenset({"ok", "error", "exit", "timeout", "memory", "output", "crash"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """Code and what may come of it."""

    kind: str
    code: str
    statuses: frozenset[str]
    result: str | None = None
    """What must be shown, and on stdout, where the status is ok."""
    stdout: str = ""
    added: int = 0
    """What it adds to the session's number `total` where the status is ok."""
    timeout: float = 30.0
    ends_session: bool = False
    """Nothing is promised of this session any more."""
    checked: bool = True
    """Whether result and stdout are promised."""


def _hostile(kind: str, code: str, *statuses: str, timeout: float = 30.0, ends_session: bool = False) -> Block:
    allowed = frozenset(statuses) or ANY_BUT_LOST
    return Block(kind=kind, code=code, statuses=allowed, timeout=timeout, ends_session=ends_session, checked=False)


HOSTILE = (
    _hostile("endless loop", "while True: pass", "timeout", timeout=0.2),
    _hostile("sleep", "import time; time.sleep(1000)", "timeout", timeout=0.2),
    _hostile("catches all", "while True:\n try:\n  while True: pass\n except BaseException: pass", "timeout", timeout=0.2),
    _hostile("endless C loop", "sum(iter(int, 1))", "timeout", timeout=0.2),
    _hostile("stopped signals", "import signal\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n"
             " except (OSError, ValueError): pass\nwhile True: pass", "timeout", timeout=0.3),
    _hostile("one huge object", "x = bytearray(1 << 45)", "memory"),
    _hostile("memory by and by", "hoard = []\nwhile True: hoard.append(bytearray(32 << 20))", "memory"),
    _hostile("output flood", "while True: print('y' * 9999)", "output"),
    _hostile("flood of stderr", "import sys\nwhile True: sys.stderr.write('y' * 9999)", "output"),
    _hostile("long output", "print('z' * 2_000_000)", "ok"),
    _hostile("long result", "'z' * 2_000_000", "ok"),
    _hostile("os._exit", "import os; os._exit(3)", "exit"),
    _hostile("SystemExit", "raise SystemExit(4)", "exit"),
    _hostile("segmentation fault", "import ctypes; ctypes.string_at(0)", "crash"),
    _hostile("abort", "import os; os.abort()", "crash"),
    _hostile("kill -9 of itself", "import os; os.kill(os.getpid(), 9)", "crash", "memory", "ok", "error"),
    _hostile("no frame on 3", "import os; os.write(3, b'\\xff' * 4096)", ends_session=True),
    _hostile("frame of 4 GiB on 3", "import os; os.write(3, b'\\x01\\xff\\xff\\xff\\xff{')", timeout=0.5, ends_session=True),
    _hostile("half a frame on 3", "import os; os.write(3, b'\\x01\\x00\\x00\\x00\\x50{\"id\":')", timeout=0.5,
             ends_session=True),
    _hostile("forged answers on 3", "import os\nfor n in range(50):\n b = ('{\"id\":%d,\"status\":\"ok\",\"result\":\"1\"}' % n)"
             ".encode()\n os.write(3, b'\\x01' + len(b).to_bytes(4, 'big') + b)", timeout=0.5, ends_session=True),
    _hostile("closes 3", "import os; os.close(3)", ends_session=True),
    _hostile("closes all", "import os; os.closerange(0, 256)", ends_session=True),
    _hostile("a thread left behind", "import threading\ndef f():\n while True: pass\n"
             "threading.Thread(target=f, daemon=True).start()", "ok"),
    _hostile("a thread that keeps the interpreter", "import threading, time\nthreading.Thread(target=lambda: sum(iter(int, 1)),"
             " daemon=True).start()\ntime.sleep(1)", "timeout", timeout=0.3),
    _hostile("printing thread left behind", "import threading\ndef f():\n while True: print('late')\n"
             "threading.Thread(target=f, daemon=True).start()", "ok", "output", ends_session=True),
    _hostile("threads without end", "import threading, time\nwhile True:\n threading.Thread(target=time.sleep, args=(99,),"
             " daemon=True).start()", "error", "memory", "timeout", timeout=3.0, ends_session=True),
    _hostile("a big file", "with open('big', 'wb') as file:\n for _ in range(40): file.write(bytes(1 << 20))", "ok", "error"),
    _hostile("many files", "for n in range(3000):\n with open(f'file{n}', 'w') as file: file.write('x')", "ok", "error"),
    _hostile("descriptors", "held = [open('/dev/null') for _ in range(9999)]", "error"),
    _hostile("fork", "import os; os.fork()", "error"),
    _hostile("fork bomb", "import os\nwhile True:\n try: os.fork()\n except OSError: break", "ok"),
    _hostile("recursion", "def f(): return f()\nf()", "error"),
    _hostile("recursion in C", "x = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x)", "error", "crash", "memory"),
    _hostile("hostile display", "class C:\n def __repr__(self):\n  while True: pass\nC()", "timeout", timeout=0.2),
    _hostile("nothing is as it was", "import builtins, sys\nbuiltins.len = builtins.print = builtins.str = None\n"
             "sys.stdout = sys.stderr = None\nsys.modules.clear()", ends_session=True),
)  # fmt: skip


def first_block(number: int) -> Block:
    """The block that makes the session's number."""
    ok = frozenset({"ok"})
    return Block(kind="first", code=f"total = {number}\ntotal", statuses=ok, result=str(number), added=number)


def benign_block(chance: random.Random, total: int) -> Block:
    """A block that any session must answer rightly; `total` is what the session's number is."""
    ok, number = frozenset({"ok"}), chance.randrange(1, 10**6)
    kind = chance.choices(("add", "print", "squares", "error", "file", "sympy"), (40, 20, 20, 10, 8, 2))[0]
    if kind == "add":
        return Block(kind=kind, code=f"total += {number}\ntotal", statuses=ok, result=str(total + number), added=number)
    if kind == "print":
        return Block(kind=kind, code=f"print(total, {number})", statuses=ok, stdout=f"{total} {number}\n")
    if kind == "squares":
        count = number % 2000 + 1
        shown = str(sum(n * n for n in range(count)) + total)
        return Block(kind=kind, code=f"sum(n * n for n in range({count})) + total", statuses=ok, result=shown)
    if kind == "error":
        return Block(kind=kind, code=f"total / ({number} - {number})", statuses=frozenset({"error"}))
    if kind == "file":
        code = f"with open('kept', 'w') as file: _ = file.write('{number}')\nopen('kept').read()"
        return Block(kind=kind, code=code, statuses=ok, result=repr(str(number)))
    p, q = chance.sample(PRIMES, 2)
    shown = str(sorted([(p, 1), (q, 1)]))  # sorted, since sympy tells factors in the order in which chance finds them
    return Block(kind=kind, code=f"import sympy\nsorted(sympy.factorint({p * q}).items())", statuses=ok, result=shown)


def hostile_block(chance: random.Random) -> Block:
    """One of the hostile blocks."""
    return chance.choice(HOSTILE)
