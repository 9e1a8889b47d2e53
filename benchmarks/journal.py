"""Rows a second into a shard's journal beside a bare write() loop, in one run: python benchmarks/journal.py [FOLDER]

What each survives: a row that write() took outlives its process; one that fsync() took outlives its node. The default writes
each row at once and syncs every 5 seconds.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mathmill.generation.journal import OpenShard
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import Shard
from mathmill.generation.worker import SYNC_S
from mathmill.records import Solution, line_of

ROWS, SYNCED_ROWS, ROUNDS = 50_000, 500, 5
GENERATION = "The mill grinds so many sacks a day, so we count the days and the sacks. " * 14
ROW = msgspec.convert(
    dict.fromkeys(Solution.__struct_fields__, "x")
    | {
        "sample_index": 1,
        "seed": 1,
        "generation": GENERATION,
        "code_blocks": [],
        "is_correct": True,
        "error_message": "",
        "finish_reason": "stop",
        "num_tokens": 300,
        "generation_type": "without_reference_solution",
        "seed_honoured": True,
    },
    Solution,
)


def opened(place: Path) -> OpenShard:
    folder = SetFolder(Path(tempfile.mkdtemp(dir=place)))
    folder.parts.mkdir()
    return OpenShard(folder, Shard(0, 0, 0, 0), None, [], "p0.0001.w", set())  # type: ignore[arg-type]


def bare(place: Path) -> float:
    """write() of a line that is there already."""
    line = line_of(ROW)
    descriptor = os.open(Path(tempfile.mkdtemp(dir=place), "rows"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    begun = time.perf_counter()
    for _ in range(ROWS):
        os.write(descriptor, line)
    seconds = time.perf_counter() - begun
    os.close(descriptor)
    return ROWS / seconds


def bare_encoded(place: Path) -> float:
    """The row made into its line, and write()."""
    descriptor = os.open(Path(tempfile.mkdtemp(dir=place), "rows"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    begun = time.perf_counter()
    for _ in range(ROWS):
        os.write(descriptor, line_of(ROW))
    seconds = time.perf_counter() - begun
    os.close(descriptor)
    return ROWS / seconds


def default(place: Path) -> float:
    shard = opened(place)
    begun = synced = time.perf_counter()
    for _ in range(ROWS):
        shard.journal(ROW)
        if time.perf_counter() - synced > SYNC_S:
            shard.sync()
            synced = time.perf_counter()
    shard.sync()
    seconds = time.perf_counter() - begun
    shard.close()
    return ROWS / seconds


def each_synced(place: Path) -> float:
    shard = opened(place)
    begun = time.perf_counter()
    for _ in range(SYNCED_ROWS):
        shard.journal(ROW)
        shard.sync()
    seconds = time.perf_counter() - begun
    shard.close()
    return SYNCED_ROWS / seconds


MODES: dict[str, tuple[Callable[[Path], float], str]] = {
    "bare write()": (bare, "survives a killed process; the line was made before"),
    "bare encode, write()": (bare_encoded, "survives a killed process"),
    f"journal, synced every {SYNC_S:.0f} s": (
        default,
        f"survives a killed process; a lost node but for {SYNC_S:.0f} s",
    ),
    "journal, each row synced": (each_synced, "survives a lost node"),
}


def main() -> None:
    with tempfile.TemporaryDirectory(
        prefix="mathmill-journal-", dir=sys.argv[1] if len(sys.argv) > 1 else None
    ) as place:
        rates: dict[str, list[float]] = {name: [] for name in MODES}
        for _ in range(ROUNDS):
            for name, (measure, _) in MODES.items():
                rates[name].append(measure(Path(place)))
        print(f"rows of {len(line_of(ROW)):,} bytes, median of {ROUNDS} rounds")
        floor = statistics.median(rates["bare write()"])
        for name, (_, survives) in MODES.items():
            rate = statistics.median(rates[name])
            print(f"{name:28} {rate:10,.0f} rows/s  {rate / floor:6.3f} of bare  {survives}")


if __name__ == "__main__":
    main()
