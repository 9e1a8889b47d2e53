"""Very many blocks, some of them hostile: every answer is accounted for, and nothing grows. `make trials` runs these."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "sandbox_soak.py"


@pytest.mark.trial
@pytest.mark.parametrize(
    "arguments", [["--blocks", "20000"], ["--blocks", "3000", "--kill", "5"]], ids=["long", "killed"]
)
def test_nothing_grows_and_every_answer_is_accounted_for(arguments: list[str]):
    done = subprocess.run([sys.executable, SOAK, *arguments], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
