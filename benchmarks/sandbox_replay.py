"""Recorded programs of language models run once more, in the sandbox: python benchmarks/sandbox_replay.py [--programs N]

Beside each outcome stands the recorded one; every difference is printed with its reason. The recordings are developers' data
(`recorded` under MATHMILL_DEV_DATA, or under ../shared/data):

- program-of-thoughts: programs, and what their authors made of the value of `ans`. Their executor had sympy's `solve`, `Symbol`,
  `Eq`, `simplify` and some modules imported, stopped a program after 5 s, and turned the value into a number: a sequence
  into its first item, or in older rows into its text; numpy's and sympy's numbers rounded to two digits in some files. An
  exception or a timeout is None, in the zero-shot GSM8K file a zero too; two files hold absolute values.
- tora-gsm8k: one program a trace, and the last line that it printed, of which the middle is cut out from 101 characters on.
  An exception is its last line; printing nothing was an IndexError of the executor.
"""

import argparse
import asyncio
import gzip
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mathmill.sandbox import AsyncSandbox, BlockResult

REPOSITORY = Path(__file__).resolve().parents[1]
TARGET = 0.995
AT_ONCE = 64
LONG_S, SHORT_S = 120.0, 20.0
"""Limit of a program that ended when it was recorded, on whatever machine that was; and of one that may not have."""
LIMIT_THEN_S = 5.0
"""What a program-of-thoughts program had, on the machine of the recording."""
NOTHING = "(nothing recorded)"
PRINTED_NOTHING = "IndexError: list index out of range"
EXECUTOR_NAMES = {
    "solve": "from sympy.solvers import solve",
    "Symbol": "from sympy import Symbol",
    "Eq": "from sympy import Eq",
    "simplify": "from sympy import simplify",
    "math": "import math",
    "np": "import numpy as np",
    "statistics": "import statistics",
}
SHOW_ANSWER = r"""
import json

def number(value):
    try:
        return float(value)
    except Exception:
        return str(value)

def readings(value):
    kind = str(type(value))
    if value is None or isinstance(value, (list, tuple)) and not value:
        return [None]
    if isinstance(value, (list, tuple)):
        items = [str(item) if "sympy" in str(type(item)) else item for item in value]
        return [str(type(value)(items)), number(value[0])]
    if "numpy" in kind and value.shape:
        return [round(float(value[0]), 2)]
    read = number(value)
    rounds = ("numpy" in kind or "sympy" in kind) and isinstance(read, float)
    return [read, round(read, 2)] if rounds else [read]

print(json.dumps(readings(globals().get("ans"))))
"""


@dataclass(frozen=True)
class Program:
    """A recorded program; `recorded` is a number, a text or None."""

    file: str
    number: int
    code: str
    recorded: Any
    printed: bool
    """Whether what it printed was recorded, and not the value of `ans`."""


@dataclass(frozen=True)
class Replay:
    """How a program ended here; it is equal if any of the readings is what was recorded."""

    program: Program
    status: str
    readings: list[Any]
    detail: str
    cpu_s: float = 0.0

    @property
    def equal(self) -> bool:
        return self.program.recorded in self.readings


@dataclass(frozen=True)
class Reason:
    """Why an outcome differs. `deterministic`: the same executor with the same libraries would have recorded it again."""

    name: str
    deterministic: bool
    holds: Callable[[Replay], bool]


def _both_numbers_close(replay: Replay) -> bool:
    recorded = replay.program.recorded
    numbers = [reading for reading in replay.readings if isinstance(reading, float)]
    return isinstance(recorded, float) and any(math.isclose(recorded, number, rel_tol=1e-9) for number in numbers)


def _same_items(replay: Replay) -> bool:
    def items(text: str) -> list[str]:
        return sorted(re.split(r", |[{}]", text))

    texts = [reading for reading in replay.readings if isinstance(reading, str)]
    recorded = str(replay.program.recorded)
    return "{" in recorded and any(items(recorded) == items(text) for text in texts)


def _symbolic_in_svamp(replay: Replay) -> bool:
    texts = all(isinstance(reading, str) for reading in replay.readings)
    of_sympy = replay.program.file == "svamp-zeroshot.jsonl.gz" and "Symbol(" in replay.program.code
    return replay.program.recorded is None and of_sympy and texts


def _same_exception(replay: Replay) -> bool:
    kind = re.match(r"(\w+): ", str(replay.program.recorded))
    return kind is not None and any(str(reading).startswith(kind[0]) for reading in replay.readings)


def _near_the_limit(replay: Replay) -> bool:
    return not replay.program.printed and replay.program.recorded is None and replay.cpu_s > LIMIT_THEN_S / 4


def _uses(pattern: str) -> Callable[[Replay], bool]:
    return lambda replay: re.search(pattern, replay.program.code) is not None


REASONS = (
    Reason("the recording holds no outcome of this program", False, lambda replay: replay.program.recorded == NOTHING),
    Reason("the recording is a timeout", False, lambda replay: "Timed Out" in str(replay.program.recorded)),
    Reason("the recording's executor stopped programs after 5 s, and this one takes seconds", False, _near_the_limit),
    Reason("uses the clock or random numbers", False, _uses(r"\b(random|time|datetime|date)\.\w+\(")),
    Reason(
        "prints a set, in the order of that process's hashes", False, lambda r: _uses(r"\bset\(")(r) and _same_items(r)
    ),
    # tried: sympy 1.11 names them as recorded, 1.12 and later as here
    Reason("a newer sympy names a solution's symbols in another order", True, _same_items),
    # none of the four programs of that file that use sympy has a value: its executor lacked sympy's names, or left texts out
    Reason(
        "a solution that holds a symbol, in the file that has no value of any sympy program", True, _symbolic_in_svamp
    ),
    Reason("a newer Python words the exception differently", True, _same_exception),
    Reason("the last digits of a float", True, _both_numbers_close),
)
UNEXPLAINED = Reason("unexplained", True, lambda replay: True)


def reason_of(replay: Replay) -> Reason:
    """The first reason that holds for a difference."""
    return next((reason for reason in REASONS if reason.holds(replay)), UNEXPLAINED)


def repeatable(replay: Replay) -> bool:
    """Whether the recording itself is deterministic, as far as can be told: all that are equal, and most that are not."""
    return replay.equal or reason_of(replay).deterministic


def programs_of(path: Path) -> list[Program]:
    """All programs of a recorded file."""
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    programs = []
    for number, row in enumerate(rows):
        if "trace" in row:
            code = re.findall(r"```python\n(.*?)```", row["trace"], re.DOTALL)
            output = re.findall(r"```output\n(.*?)```", row["trace"], re.DOTALL)
            assert len(code) == 1, f"{path.name} row {number}: {len(code)} programs"
            recorded = output[0].strip() if output else NOTHING
            programs.append(Program(path.name, number, code[0], recorded, printed=True))
        else:
            code = row["generated"] if isinstance(row["generated"], list) else [row["generated"]]
            assert len(code) == 1, f"{path.name} row {number}: {len(code)} programs"
            programs.append(Program(path.name, number, code[0], row["executed"], printed=False))
    return programs


def recorded_files(data: Path) -> list[Path]:
    """The recorded files that hold programs."""
    return sorted(path for name in ("program-of-thoughts", "tora-gsm8k") for path in (data / name).glob("*.jsonl.gz"))


def last_line(told: BlockResult) -> str:
    """What ToRA's executor would have recorded."""
    if told.status == "timeout":
        return "timeout_decorator.timeout_decorator.TimeoutError: 'Timed Out'"
    lines = (told.stdout if told.status == "ok" else told.stderr or told.status).strip().splitlines()
    line = lines[-1].strip() if lines else PRINTED_NOTHING
    return line if len(line) <= 100 else f"{line[:50]}...{line[-50:]}"


def as_recorded(file: str, readings: list[Any]) -> list[Any]:
    """What the authors made of a value in this file."""
    if file == "gsm8k-zeroshot.jsonl.gz":
        return [None if reading == 0 else reading for reading in readings]
    if file in ("svamp-fewshot.jsonl.gz", "multiarith-zeroshot.jsonl.gz"):
        return [abs(reading) if isinstance(reading, float) else reading for reading in readings]
    return readings


async def replay(sandbox: AsyncSandbox, program: Program) -> Replay:
    """Run a program in a session of its own."""
    ended = program.recorded is not None and "Timed Out" not in str(program.recorded)
    imports = [line for name, line in EXECUTOR_NAMES.items() if re.search(rf"\b{name}\b", program.code)]
    async with sandbox.session() as session:
        if imports and not program.printed:
            before = await session.run("\n".join(imports), timeout=LONG_S)
            assert before.status == "ok", before
        told = await session.run(program.code, timeout=LONG_S if ended else SHORT_S)
        if told.status == "lost":
            raise ConnectionError(f"{program.file}:{program.number + 1}: {told.stderr}")
        if program.printed:
            readings = [last_line(told)]
        elif told.status == "ok":
            shown = await session.run(SHOW_ANSWER, timeout=LONG_S)
            readings = json.loads(shown.stdout.splitlines()[-1]) if shown.status == "ok" else [shown.stderr]
        else:
            readings = [None]
    detail = "\n".join(told.stderr.splitlines()[-1:])
    return Replay(program, told.status, as_recorded(program.file, readings), detail, told.cpu_s)


async def replay_all(programs: list[Program], quiet: bool = False) -> list[Replay]:
    """Run all programs, many sessions at once."""
    places = asyncio.Semaphore(AT_ONCE)
    async with await AsyncSandbox.start() as sandbox:

        async def in_turn(program: Program) -> Replay:
            async with places:
                return await replay(sandbox, program)

        running = [asyncio.ensure_future(in_turn(program)) for program in programs]
        quiet = quiet or not sys.stderr.isatty()
        ended = track(
            asyncio.as_completed(running), "replaying", len(running), console=Console(stderr=True), disable=quiet
        )
        for future in ended:
            await future
    return [task.result() for task in running]


def share_equal(replays: list[Replay]) -> float:
    """Of the programs whose recording is deterministic, how many ended as recorded."""
    fair = [replay for replay in replays if repeatable(replay)]
    return sum(replay.equal for replay in fair) / max(1, len(fair))


def report(replays: list[Replay], console: Console) -> None:
    """Counts per file; every difference; how often each reason held."""
    table = Table("file", title="recorded programs in the sandbox")
    for column in ("programs", "not repeatable", "equal", "different", "unexplained", "share equal"):
        table.add_column(column, justify="right")
    files = list(dict.fromkeys(replay.program.file for replay in replays))
    for name, chosen in [(file, [r for r in replays if r.program.file == file]) for file in files] + [("all", replays)]:
        fair = [replay for replay in chosen if repeatable(replay)]
        equal = sum(replay.equal for replay in fair)
        unexplained = sum(not replay.equal and reason_of(replay) is UNEXPLAINED for replay in fair)
        counts = (len(chosen), len(chosen) - len(fair), equal, len(fair) - equal, unexplained)
        table.add_row(name, *map(str, counts), f"{share_equal(chosen):.2%}")
    console.print(table)
    differences = [replay for replay in replays if not replay.equal]
    for replay in differences:
        place, ours = f"{replay.program.file}:{replay.program.number + 1}", " or ".join(map(repr, replay.readings))
        console.print(f"{place}  {reason_of(replay).name}\n    recorded {replay.program.recorded!r}\n    here     {ours} "
                      f"({replay.status}) {replay.detail}", markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    for name, count in Counter(reason_of(replay).name for replay in differences).most_common():
        console.print(f"{count:5} {name}", markup=False, highlight=False)


def as_row(replay: Replay) -> dict[str, Any]:
    """A difference as a line of JSON."""
    program = replay.program
    return {"file": program.file, "row": program.number, "reason": reason_of(replay).name, "recorded": program.recorded,
            "readings": replay.readings, "status": replay.status, "detail": replay.detail, "code": program.code}  # fmt: skip


def spread(programs: list[Program], count: int) -> list[Program]:
    """So many of the programs, evenly spaced; all for 0."""
    return programs[:: math.ceil(len(programs) / count)] if count else programs


def main() -> int:
    """Replay, print, and end with 1 where fewer than the target are equal or a difference is unexplained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=0, help="so many of each file, evenly spaced (default: all)")
    parser.add_argument("--output", type=Path, help="write the differences here, one JSON a line")
    arguments = parser.parse_args()
    data = Path(os.environ.get("MATHMILL_DEV_DATA", REPOSITORY.parent / "shared" / "data")) / "recorded"
    files = recorded_files(data)
    if not files:
        print(f"no recorded programs under {data}; set MATHMILL_DEV_DATA to the developers' data", file=sys.stderr)
        return 2
    programs = [program for path in files for program in spread(programs_of(path), arguments.programs)]
    replays = asyncio.run(replay_all(programs))
    report(replays, Console(width=None if sys.stdout.isatty() else 120))
    differences = [replay for replay in replays if not replay.equal]
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(as_row(replay)) + "\n" for replay in differences))
    unexplained = any(reason_of(replay) is UNEXPLAINED for replay in differences)
    return int(share_equal(replays) < TARGET or unexplained)


if __name__ == "__main__":
    sys.exit(main())
