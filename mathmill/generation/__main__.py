"""The generation step of a job: python -m mathmill.generation RUN/jobs/NAME.json"""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from mathmill.errors import UserError, said_by_disk
from mathmill.generation.options import WorkerOptions
from mathmill.generation.sets import set_folders
from mathmill.generation.shards import left
from mathmill.generation.summary import print_summary
from mathmill.generation.worker import run_worker
from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told, hide_environment
from mathmill.run import Run


def main() -> int:
    die_with_parent_if_told()
    hide_environment()
    options = msgspec.convert(section(sys.argv[1], "generation"), WorkerOptions)
    run = Run(Path(os.environ["MATHMILL_RUN"]))
    try:
        code = asyncio.run(run_worker(run, options))
    except OSError as problem:  # a full disk, a file system that failed, a sandbox that died
        raise UserError(
            f"{said_by_disk(problem)}; what was finished before is safe: the same command goes on"
        ) from None
    if code == 0 and options.sums_up and not any(left(folder, folder.load()) for folder in set_folders(run)):
        print_summary(run)
    return code


if __name__ == "__main__":
    ended_by(main)
