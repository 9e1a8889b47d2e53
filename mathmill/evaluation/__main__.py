"""The judge step of a job: python -m mathmill.evaluation RUN/jobs/NAME.json"""

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from mathmill.evaluation.judge import JudgeOptions, judge_run, print_line
from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told, hide_environment
from mathmill.run import Run


def main() -> int:
    die_with_parent_if_told()
    hide_environment()
    options = msgspec.convert(section(sys.argv[1], "judge"), JudgeOptions)
    return asyncio.run(judge_run(Run(Path(os.environ["MATHMILL_RUN"])), options, print_line))


if __name__ == "__main__":
    ended_by(main)
