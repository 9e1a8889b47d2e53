"""Trial: how soon after its last row a task gives its allocation back, beside a script that only ends, by Slurm's accounting."""

import statistics
import subprocess
import time
from pathlib import Path

import pytest

from tests.trials.scene import Trial, asked_for, replaying, site, wait_for_end, wait_until, words

pytestmark = [pytest.mark.trial, pytest.mark.slurm]


def end_of(job_id: str) -> float:
    """Seconds since 1970 at which Slurm took the allocation back, in whole seconds."""

    def told() -> str:
        command = ["sacct", "-nPX", f"--jobs={job_id}", "--format=End"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return said[0] if said and said[0] != "Unknown" else ""

    return time.mktime(time.strptime(wait_until(told, 60, "the accounting"), "%Y-%m-%dT%H:%M:%S"))


def plain(number: int) -> float:
    """Seconds from the last line of a script to the end of its job."""
    last = Path(f"last-{number}").resolve()
    script = Path(f"plain-{number}.sh")
    script.write_text(f"#!/bin/bash\n#SBATCH --output=/dev/null\nsleep 1\ntouch {last}\n")
    said = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True, check=True)
    job = said.stdout.strip()
    wait_for_end(job)
    return end_of(job) - last.stat().st_mtime


def ours(number: int, url: str, cluster: str) -> float:
    """Seconds from the last row of a run to the end of its job."""
    ids = words("few.jsonl", 12, first=12 * (number % 10))
    flags = ["--cluster", cluster, "--server", "openai", "--server_address", url]
    trial = Trial(f"release-{number}", "few.jsonl", ids, 2, flags)
    job = trial.launch()
    wait_for_end(job)
    last = max(path.stat().st_mtime for path in trial.folder.folder.glob("p0*.jsonl"))
    trial.check()
    return end_of(job) - last


def test_a_task_gives_its_allocation_back_soon_after_its_last_row(workdir, slurm):
    count = asked_for("releases") // 2
    words("all.jsonl", 120)
    with replaying("all.jsonl", 0.1) as url:
        cluster = site("test")
        theirs, own = [], []
        for number in range(count):
            theirs.append(plain(number))
            own.append(ours(number, url, cluster))
    more = statistics.mean(own) - statistics.mean(theirs)
    print(
        f"last row to release {statistics.mean(own):.2f} s, a plain script {statistics.mean(theirs):.2f} s: {more:.2f} s more"
    )
    assert more < 2.0
