"""Grade a run's solutions anew, under any policy: verdicts beside the shards, which stay as they are."""

import os
from dataclasses import dataclass, field

from tyro.conf import Positional

from mathmill.options import script


@dataclass(frozen=True, kw_only=True)
class GradeOptions:
    """Grade a run's solutions anew. The same command again goes on, and grades only shards that are new."""

    run: Positional[str | None] = None
    """Name of a run in runs/, or its folder (default: the newest)."""
    policy: str = "default"
    """What counts as the same answer: default, strict (units, rounding, order and case count), omi1 (as published)."""
    name: str | None = None
    """The verdicts' own name, for RUN/solutions/SET/verdicts/NAME (default: the policy's)."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes for the answers that need SymPy."""
    timeout_s: float = 10.0
    """Wall seconds that one comparison may take; then nobody could tell."""


def main() -> None:
    script(GradeOptions, grade_run)


def grade_run(options: GradeOptions) -> None:
    """Grade every set of the run; print the counts, those that nobody could tell apart from the wrong ones."""
    from mathmill.errors import UserError
    from mathmill.generation.regrade import regrade, verdict_folder
    from mathmill.generation.sets import set_folders
    from mathmill.grading import GradingPool
    from mathmill.grading.pairs import progress_bar
    from mathmill.run import check_folder_name, find_run

    name = options.name or options.policy
    check_folder_name("--name", name)
    run = find_run(options.run)
    folders = set_folders(run)
    if not folders:
        raise UserError(f"{run.folder} has no solutions to grade")
    pool = GradingPool(options.workers, options.timeout_s, policy=options.policy)
    try:
        for folder in folders:
            with progress_bar(folder.folder.name) as advance:
                regrading = regrade(folder, name, pool, advance)
            print(f"{folder.folder.name}, policy {options.policy}: {verdict_folder(folder, name)}")
            for line in regrading.lines():
                print(f"  {line}")
    finally:
        pool.close()
