"""What is measured of anything that runs Python blocks in sessions. Standard library only, so that any Python can import it."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

from process_tree import children, cpu_of_descendants, descendants, memory_mb

TIMEOUT_S = 0.2


class Session(Protocol):
    def run(self, code: str, timeout: float) -> str:
        """Run a block; what its last expression shows, or `timeout`."""


class Contestant(Protocol):
    """Something that runs blocks. All its processes are descendants of the one that measures."""

    name: str

    def start(self) -> None: ...
    def session(self) -> AbstractContextManager[Session]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured: so many sessions, less where they take longer than so many seconds."""

    sessions: int = 200
    budget_s: float = 12.0
    at_once: int = 4
    """Sessions open at a time where CPU is counted."""
    held: int = 8
    """Sessions open at a time where memory is counted."""


def trivial_blocks(number: int) -> list[tuple[str, str]]:
    """Blocks of a session and what each must show."""
    return [("x = 1", ""), ("x = x + 1", ""), ("x", "2")]


def sympy_blocks(number: int) -> list[tuple[str, str]]:
    """The same with a quadratic of its own for each session, so that no cache answers; its roots are integers."""
    p, q = 2 + number % 97, 3 + number // 97
    return _solving(q - p, -p * q)


def surd_blocks(number: int) -> list[tuple[str, str]]:
    """The same with roots that are no fractions: sympy itself works longest, whoever runs it."""
    return _solving(3 + 2 * (number % 997), -(5 + number))


def _solving(b: int, c: int) -> list[tuple[str, str]]:
    return [
        ("from sympy import *\nx = symbols('x')", ""),
        (f"roots = solve(x**2 + {b}*x + {c}, x)\nlen(roots)", "2"),
        ("expand(roots[0] + roots[1])", str(-b)),
    ]


KINDS = {"trivial": trivial_blocks, "sympy": sympy_blocks, "surd": surd_blocks}


def percentile(values: list[float], percent: float) -> float:
    """Nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def run_session(session: Session, blocks: list[tuple[str, str]]) -> None:
    """Run blocks one after another; AssertionError for a wrong answer."""
    for code, shown in blocks:
        told = session.run(code, 60.0)
        assert told == shown, f"{code!r} showed {told!r}, not {shown!r}"


def settle() -> None:
    """Wait until no descendant works any more: ended sessions are waited for, a pool is filled again."""
    before, still = cpu_of_descendants().total, 0
    while still < 3:
        time.sleep(0.15)
        now = cpu_of_descendants().total
        still, before = (still + 1, now) if now - before < 0.02 else (0, now)


def blocks_per_cpu_s(
    contestant: Contestant, blocks_of: Callable[[int], list[tuple[str, str]]], extent: Extent, first: int
) -> dict[str, float]:
    """Blocks per CPU-second of all service processes, and the client's milliseconds a block.

    `first` numbers the first session: the same numbers are the same blocks.
    """
    settle()
    numbers, end = itertools.count(first), time.monotonic() + extent.budget_s

    def client(_: int) -> int:
        ran = 0
        while (number := next(numbers)) < first + extent.sessions and time.monotonic() < end:
            blocks = blocks_of(number)
            with contestant.session() as session:
                run_session(session, blocks)
            ran += len(blocks)
        return ran

    own, service, began = time.process_time(), cpu_of_descendants(), time.perf_counter()
    with ThreadPoolExecutor(extent.at_once) as threads:
        ran = sum(threads.map(client, range(extent.at_once)))
    own, wall = time.process_time() - own, time.perf_counter() - began
    settle()
    used = cpu_of_descendants().since(service)
    return {
        "per_cpu_s": ran / used.total,
        "per_wall_s": ran / wall,
        "system_share": used.system / used.total,
        "client_ms": 1000 * own / ran,
        "blocks": ran,
    }


def first_block_ms(contestant: Contestant, extent: Extent) -> list[float]:
    """From the wish for a session to the result of its first block, sessions coming one by one with pauses."""
    times, end = [], time.monotonic() + extent.budget_s
    while len(times) < extent.sessions and (len(times) < 3 or time.monotonic() < end):
        time.sleep(0.03)
        began = time.perf_counter()
        with contestant.session() as session:
            session.run("x = 1", 60.0)
            times.append(1000 * (time.perf_counter() - began))
    return times


def later_block_ms(contestant: Contestant, extent: Extent) -> list[float]:
    """Round trip of a block that does next to nothing, in a session that lives."""
    times, end = [], time.monotonic() + extent.budget_s / 2
    with contestant.session() as session:
        for _ in range(5):
            session.run("x = 1", 60.0)
        while len(times) < 5 * extent.sessions and (len(times) < 3 or time.monotonic() < end):
            began = time.perf_counter()
            session.run("x = 1", 60.0)
            times.append(1000 * (time.perf_counter() - began))
    return times


def overshoot_ms(contestant: Contestant, extent: Extent) -> list[float]:
    """How long after its timeout the answer to an endless loop comes."""
    times, end = [], time.monotonic() + extent.budget_s
    while len(times) < extent.sessions / 4 and (len(times) < 3 or time.monotonic() < end):
        with contestant.session() as session:
            session.run("x = 1", 60.0)
            began = time.perf_counter()
            told = session.run("while True: pass", TIMEOUT_S)
            times.append(1000 * (time.perf_counter() - began - TIMEOUT_S))
            assert told == "timeout", told
    return times


def session_memory_mb(contestant: Contestant, count: int) -> dict[str, float]:
    """Memory a session when some are open that did the sympy blocks.

    `session`: mean proportional set size (PSS) of the processes at the end of the tree that changed most memory, one a
    session; `growth`: how much the PSS of the whole tree grew, by session.
    """
    settle()
    before = sum(memory_mb(pid).get("Pss", 0) for pid in descendants(os.getpid()))
    with ExitStack() as held:
        for number in range(count):
            run_session(held.enter_context(contestant.session()), sympy_blocks(90_000 + number))
        settle()
        tree = {pid: memory_mb(pid) for pid in descendants(os.getpid())}
        leaves = [memory for pid, memory in tree.items() if memory and not children(pid)]
        chosen = sorted(leaves, key=lambda memory: memory["Private_Dirty"])[-count:]
        growth = sum(memory.get("Pss", 0) for memory in tree.values()) - before
    if len(chosen) < count:
        return {}
    return {"session": sum(memory["Pss"] for memory in chosen) / count, "growth": growth / count}


def cold_start_s(contestant: Contestant) -> float:
    """From nothing to the first result."""
    began = time.perf_counter()
    contestant.start()
    with contestant.session() as session:
        run_session(session, [("6 * 7", "42")])
        return time.perf_counter() - began


def measure(
    contestant: Contestant, extent: Extent, kinds: Iterable[str] = ("trivial", "sympy"), holds_state: bool = True
) -> dict[str, float]:
    """All quantities by name. `holds_state`: whether a session has a process between blocks, whose memory can be measured."""
    found: dict[str, float] = {"cold_s": cold_start_s(contestant)}
    try:
        for times_of in (first_block_ms, later_block_ms, overshoot_ms):
            settle()
            times = times_of(contestant, extent)
            name = times_of.__name__.removesuffix("_ms")
            found |= {
                f"{name}_p50": percentile(times, 50),
                f"{name}_p99": percentile(times, 99),
                f"{name}_n": len(times),
            }
        for name in kinds:
            measured = blocks_per_cpu_s(contestant, KINDS[name], extent, first=1000)
            found |= {f"{name}_{quantity}": value for quantity, value in measured.items()}
        if holds_state:
            found |= {f"memory_{name}": value for name, value in session_memory_mb(contestant, extent.held).items()}
    finally:
        contestant.close()
    return found


def floor(extent: Extent) -> dict[str, float]:
    """Blocks per CPU-second of the same blocks in this very process, sympy warm: no session, no isolation."""
    found = {}
    for name, blocks_of in KINDS.items():
        for first, sessions in ((50_000, 20), (1000, extent.sessions)):  # the first time only warms
            began = time.process_time()
            for number in range(first, first + sessions):
                names: dict[str, object] = {}
                for code, _ in blocks_of(number):
                    exec(compile(code, "block", "exec"), names)
            found[f"{name}_per_cpu_s"] = 3 * sessions / (time.process_time() - began)
    return found
