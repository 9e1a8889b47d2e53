"""The generation step of a job: python -m mathmill.generation RUN/jobs/NAME.json"""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from mathmill.generation.summary import print_summary
from mathmill.generation.worker import WorkerOptions, run_worker
from mathmill.options import ended_by, section
from mathmill.run import Run


def main() -> int:
    options = msgspec.convert(section(sys.argv[1], "generation"), WorkerOptions)
    run = Run(Path(os.environ["MATHMILL_RUN"]))
    code = asyncio.run(run_worker(run, options))
    if code == 0:
        print_summary(run)
    return code


if __name__ == "__main__":
    ended_by(main)
