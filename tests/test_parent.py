"""What a process asks of Linux for itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mathmill.parent import TOLD

REPOSITORY = Path(__file__).parents[1]
SCRIPT = """
import ctypes
from mathmill.parent import hide_environment
asked = [ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)]  # PR_GET_DUMPABLE
hide_environment()
asked.append(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print(*asked)
"""


def test_a_process_that_hides_its_environment_is_not_dumpable():
    told = subprocess.run([sys.executable, "-c", SCRIPT], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True).stdout
    assert told == "1 0\n"


@pytest.mark.parametrize("is_parent", [True, False])
def test_a_step_whose_parent_was_killed_while_it_started_ends_at_once(is_parent):
    code = "from mathmill.parent import die_with_parent_if_told as told; print(told()); raise SystemExit(5)"
    named = os.getpid() if is_parent else 2**22 + 1  # more than any process's number
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), TOLD: str(named)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == (
        5 if is_parent else -signal.SIGTERM
    )
