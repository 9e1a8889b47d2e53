"""The sandbox's speed beside a process per block, an IPython kernel per session and a floor, in one run.

python benchmarks/sandbox.py [--quick] [--kernel_python PYTHON]

- Blocks per CPU-second: sessions of three blocks, a few at once, all processes of the service counted (what is living and what
  was waited for, until all is quiet again), the client apart. Trivial: `x = 1`, `x = x + 1`, `x`. Sympy: import all, solve a
  quadratic that differs from session to session, use its roots. Every answer is checked. Where the roots are no fractions
  sympy alone needs several times as long, so that figure stands apart.
- First block: from the wish for a session to its first result, sessions one by one with pauses. Later block: round trip of
  `x = 1`. Overshoot: how long after its timeout the answer to `while True: pass` comes.
- Process per block: `python -c` with the code of the session's earlier blocks before the new block's, so its CPU grows with each.
- Kernel: started and shut down with the session, as jupyter_client does; a timeout is its interrupt.
- Floor: compile and exec of the same blocks in one warm process. No session can be cheaper than that.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from process_tree import cpu_of_descendants
from rich.console import Console
from rich.table import Table
from sandbox_measures import KINDS, Extent, floor, measure
from sandbox_peers import ProcessPerBlock

from mathmill.sandbox import Sandbox
from mathmill.sandbox import Session as SandboxSession

Measured = dict[str, float]
PEERS = Path(__file__).with_name("sandbox_peers.py")
ROWS = (
    ("trivial blocks per CPU-s", "trivial_per_cpu_s", 500.0),
    ("sympy blocks per CPU-s", "sympy_per_cpu_s", 200.0),
    ("the same, roots no fractions", "surd_per_cpu_s", None),
    ("trivial blocks per wall second", "trivial_per_wall_s", None),
    ("sympy blocks per wall second", "sympy_per_wall_s", None),
    ("first block p50, ms", "first_block_p50", 3.0),
    ("first block p99, ms", "first_block_p99", None),
    ("later block p50, ms", "later_block_p50", 0.3),
    ("later block p99, ms", "later_block_p99", None),
    ("timeout overshoot p50, ms", "overshoot_p50", None),
    ("timeout overshoot p99, ms", "overshoot_p99", 25.0),
    ("memory a session after sympy, MB", "memory_session", 8.0),
    ("  growth of the whole tree, MB", "memory_growth", None),
    ("cold start, s", "cold_s", 2.0),
    ("client CPU a trivial block, ms", "trivial_client_ms", None),
    ("system's share of CPU, trivial, %", "trivial_system_share", None),
    ("system's share of CPU, sympy, %", "sympy_system_share", None),
)


class Ours:
    """The sandbox, through its blocking client."""

    name = "mathmill"
    told_cpu_s = 0.0
    """CPU of all blocks, as their results say: the least that must be found in /proc."""

    class _Session:
        def __init__(self, session: SandboxSession):
            self._session = session

        def run(self, code: str, timeout: float) -> str:
            told = self._session.run(code, timeout=timeout)
            Ours.told_cpu_s += told.cpu_s
            return (told.result or "") if told.status == "ok" else told.status

    def start(self) -> None:
        self._sandbox = Sandbox.start()

    @contextmanager
    def session(self) -> Iterator[_Session]:
        with self._sandbox.session() as session:
            yield self._Session(session)

    def close(self) -> None:
        self._sandbox.close()


def measured_kernel(python: str, extent: Extent) -> tuple[Measured, str]:
    """The kernel's quantities, measured by another process under `python`; or none, and why."""
    import_both = [python, "-c", "import ipykernel, jupyter_client"]
    if subprocess.run(import_both, capture_output=True, check=False).returncode:
        return {}, (f"IPython kernel left out: {python} cannot import it; python3 -m venv VENV && VENV/bin/pip install ipykernel "
                    "numpy sympy scipy pandas, then --kernel_python VENV/bin/python")  # fmt: skip
    arguments = [str(extent.sessions), str(extent.budget_s), str(extent.at_once), str(extent.held)]
    done = subprocess.run([python, str(PEERS), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        return {}, f"IPython kernel left out: {done.stderr.strip().splitlines()[-1]}"
    return json.loads(done.stdout), ""


def shown(name: str, value: float | None) -> str:
    """A value with about three digits."""
    if value is None:
        return "-"
    if name.endswith("share"):
        return f"{100 * value:.0f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(name: str, ours: float | None, other: float | None) -> str:
    """How many times better ours is."""
    if not ours or not other or name.endswith("share"):
        return "-"
    times = ours / other if "_per_" in name else other / ours
    return f"{times:,.0f}x" if times >= 10 else f"{times:.2g}x"


def table_of(ours: Measured, process: Measured, kernel: Measured, floors: Measured) -> Table:
    """All quantities beside each other."""
    table = Table("quantity")
    for column in (
        "target",
        "mathmill",
        "",
        "process per block",
        "ratio",
        "IPython kernel",
        "ratio",
        "floor",
        "of floor",
    ):
        table.add_column(column, justify="right")
    for title, name, target in ROWS:
        own, lowest = ours.get(name), floors.get(name)
        reached = own is not None and target is not None and (own >= target if "_per_" in name else own <= target)
        table.add_row(
            title,
            "" if target is None else f"{target:g}",
            shown(name, own),
            "" if target is None else "[green]reached[/]" if reached else "[red]missed[/]",
            shown(name, process.get(name)),
            ratio(name, own, process.get(name)),
            shown(name, kernel.get(name)),
            ratio(name, own, kernel.get(name)),
            shown(name, lowest) if lowest else "",
            f"{100 * own / lowest:.2g}%" if own and lowest else "",
        )
    return table


def samples(measured: Measured) -> str:
    """How many times each quantity was measured."""
    names = ("trivial_blocks", "sympy_blocks", "first_block_n", "later_block_n", "overshoot_n")
    return ", ".join(f"{name.removesuffix('_n').replace('_', ' ')} {measured[name]:.0f}" for name in names)


def step(told: Callable[[str], None], what: str, work: Callable[[], Measured]) -> Measured:
    """Do a part of the work, saying so."""
    told(f"measuring {what} …")
    return work()


def main() -> None:
    """Measure all, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200, help="at most so many sessions a quantity")
    parser.add_argument("--at_once", type=int, default=4, help="sessions open at a time where CPU is counted")
    parser.add_argument("--quick", action="store_true", help="a fifth of the sessions, in a fifth of the time")
    parser.add_argument("--kernel_python", default=sys.executable, help="a Python with ipykernel and sympy")
    arguments = parser.parse_args()
    part = 5 if arguments.quick else 1
    extent = Extent(sessions=arguments.sessions // part, budget_s=8 / part, at_once=arguments.at_once)
    short = Extent(sessions=extent.sessions, budget_s=extent.budget_s / 2, at_once=min(2, extent.at_once), held=3)
    console = Console(width=None if sys.stdout.isatty() else 150)
    told = Console(stderr=True).print
    ours = step(told, "mathmill", lambda: measure(Ours(), extent, kinds=KINDS))
    found_cpu_s = cpu_of_descendants().total
    assert found_cpu_s > Ours.told_cpu_s, f"blocks told of {Ours.told_cpu_s:.1f} s of CPU, /proc of {found_cpu_s:.1f} s"
    process = step(told, "process per block", lambda: measure(ProcessPerBlock(), short, holds_state=False))
    told("measuring IPython kernel …")
    kernel, without = measured_kernel(arguments.kernel_python, short)
    floors = step(told, "the floor", lambda: floor(extent))
    console.print(table_of(ours, process, kernel, floors))
    for name, measured in (("mathmill", ours), ("process per block", process), ("IPython kernel", kernel)):
        if measured:
            console.print(f"{name}: {samples(measured)}", highlight=False)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{os.cpu_count()} processors, load {load}; memory: PSS, mean of {extent.held} sessions (kernel: {short.held})",
        highlight=False,
    )
    if without:
        console.print(without, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
