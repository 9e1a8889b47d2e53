"""The data step of a job: python -m mathmill.selection RUN/jobs/NAME.json"""

import os
import sys
from pathlib import Path

import msgspec

from mathmill.options import ended_by, section
from mathmill.parent import die_with_parent_if_told
from mathmill.run import Run
from mathmill.selection.work import Work, do


def main() -> int:
    die_with_parent_if_told()
    do(msgspec.convert(section(sys.argv[1], "selection"), Work), Run(Path(os.environ["MATHMILL_RUN"])))
    return 0


if __name__ == "__main__":
    ended_by(main)
