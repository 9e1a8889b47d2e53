"""Grade a file of pairs: python -m mathmill.grading PAIRS.jsonl --output VERDICTS.jsonl"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from mathmill.options import script


@dataclass(frozen=True, kw_only=True)
class PairsOptions:
    """Grade pairs of answers. The same command again goes on where a killed one ended."""

    pairs: Positional[Path]
    """JSON lines with `expected` and `predicted`, plain or .gz."""
    output: Path
    """The same rows with a `verdict`: is_correct (null: could not tell), rule, policy."""
    policy: str = "default"
    """What counts as the same answer: default, strict (units, rounding, order and case count), omi1 (as published)."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes for the answers that need SymPy."""
    timeout_s: float = 10.0
    """Wall seconds that one comparison may take; then nobody could tell."""
    memory_mb: int = 1024
    """Address space of one worker."""


def grade_pairs(options: PairsOptions) -> None:
    from mathmill.grading.pairs import grade_file
    from mathmill.grading.pool import GradingPool

    pool = GradingPool(options.workers, options.timeout_s, options.memory_mb, options.policy)
    try:
        tally = grade_file(options.pairs, options.output, pool)
    finally:
        pool.close()
    for line in tally.lines():
        print(line)


if __name__ == "__main__":
    script(PairsOptions, grade_pairs)
