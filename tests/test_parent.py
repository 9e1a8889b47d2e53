"""What a process asks of Linux for itself."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ctypes
from mathmill.parent import hide_environment
asked = [ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)]  # PR_GET_DUMPABLE
hide_environment()
asked.append(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print(*asked)
"""


def test_a_process_that_hides_its_environment_is_not_dumpable():
    repository = str(Path(__file__).parents[1])
    told = subprocess.run([sys.executable, "-c", SCRIPT], cwd=repository, stdout=subprocess.PIPE, text=True).stdout
    assert told == "1 0\n"
