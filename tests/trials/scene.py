"""Runs on the real Slurm for the trials: how they are launched, what they have acknowledged, who works for them."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mathmill.generation.parts import whole_rows
from mathmill.generation.sets import SetFolder
from mathmill.generation.shards import Key
from mathmill.records import Solution
from mathmill.run import Run

REPO = Path(__file__).parents[2]
REPLAY = REPO / "tests" / "generation" / "replay_server.py"
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"}
"""A task in any other state will run on, or again."""


def asked_for(name: str) -> int:
    """How many trials of a kind: MATHMILL_TRIALS_NAME, or as many as the project promises."""
    return int(os.environ.get(f"MATHMILL_TRIALS_{name.upper()}", {"kills": 200, "takeovers": 200}.get(name, 20)))


def site(name: str, **changes: object) -> str:
    """A cluster file for the test Slurm in this folder."""
    Path("cluster_configs").mkdir(exist_ok=True)
    here = {
        "executor": "slurm",
        "partitions": {"gpu": "batch", "cpu": "batch"},
        "time_limit": "01:00:00",
        "cpus": 1,
        "python": sys.executable,
    }
    Path("cluster_configs", f"{name}.yaml").write_text(json.dumps({**here, **changes}))
    return name


def words(path: str, count: int, first: int = 0) -> list[str]:
    """A file of bundled word problems; their ids."""
    lines = (REPO / "problems" / "words" / "test.jsonl").read_text().splitlines()[first : first + count]
    Path(path).write_text("\n".join(lines) + "\n")
    return [json.loads(line)["problem_id"] for line in lines]


@contextlib.contextmanager
def replaying(problems: str, delay_s: float, log: Path | None = None) -> Iterator[str]:
    """URL of a server that answers each of these problems in one round, after `delay_s`."""
    recorded, port = Path(f"{problems}.recorded"), Path(f"{problems}.port").resolve()
    rows = [json.loads(line) for line in Path(problems).read_text().splitlines()]
    trace = "We add 20 and 22. The answer is \\boxed{42}."
    recorded.write_text("".join(json.dumps({"problem": row["problem"], "trace": trace}) + "\n" for row in rows))
    server = subprocess.Popen([sys.executable, REPLAY, recorded, port, str(delay_s), *([log] if log else [])])
    try:
        while not port.exists():
            assert server.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}"
    finally:
        server.terminate()
        server.wait()
        port.unlink()


@dataclass
class Trial:
    """A run of bundled problems, and what it has said to be safe."""

    name: str
    problems: str
    problem_ids: list[str]
    num_samples: int
    flags: list[str]

    def __post_init__(self) -> None:
        self.run = Run(Path("runs", self.name).resolve())
        self.acknowledged: dict[Key, set[bytes]] = {}

    @property
    def folder(self) -> SetFolder:
        return SetFolder(next(self.run.solutions.iterdir()))

    @property
    def num_rows(self) -> int:
        return len(self.problem_ids) * self.num_samples

    def launch(self, *more: str) -> str:
        """The same command as ever; the job's id, empty where nothing was left to do."""
        before = self.num_submitted
        done = pipeline(
            "run_generation",
            *("--problems", self.problems, "--run", self.name, "--num_samples", str(self.num_samples)),
            *self.flags,
            *more,
        )
        assert done.returncode == 0, done.stderr
        if self.num_submitted == before:
            assert "is finished; nothing to do" in done.stderr
            return ""
        return str(self.submitted[-1]["job_id"])

    @property
    def submitted(self) -> list[dict[str, object]]:
        path = self.run.jobs / "submitted.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def num_submitted(self) -> int:
        return len(self.submitted)

    def acknowledge(self) -> int:
        """Remember every row that is safe just now; how many they are."""
        files = [
            *self.folder.folder.glob("p0*.jsonl"),
            *self.folder.parts.iterdir(),
            *self.folder.folder.glob("p0*.jsonl"),
        ]
        for path in files:
            for key, line in whole_rows(path, Solution):
                self.acknowledged.setdefault(key, set()).add(line)
        return len(self.acknowledged)

    def check(self) -> None:
        """Every row once, each acknowledged one as it was, and `verify` says the same."""
        made: dict[Key, list[bytes]] = {}
        for path in self.folder.folder.glob("p0*.jsonl"):
            content = path.read_bytes()
            rows = list(whole_rows(path, Solution))
            assert len(rows) == content.count(b"\n") and content.endswith(b"\n"), f"{path} has malformed lines"
            for key, line in rows:
                made.setdefault(key, []).append(line)
        assert Counter({key: len(lines) for key, lines in made.items()}) == Counter(
            {(problem, sample): 1 for problem in self.problem_ids for sample in range(self.num_samples)}
        )
        lost = [key for key, lines in self.acknowledged.items() if made[key][0] not in lines]
        assert not lost, f"acknowledged rows were replaced: {lost[:5]}"
        proof = pipeline("verify", self.name)
        assert proof.returncode == 0, proof.stdout
        assert f"{self.num_rows:,} rows asked for, {self.num_rows:,} made once; nothing is wrong" in proof.stdout

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.run.logs.glob("*.log")))


def pipeline(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the project's scripts, as a user starts it."""
    return subprocess.run(
        [sys.executable, REPO / "pipeline" / f"{name}.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )


def in_queue(job_id: str) -> list[str]:
    """Tasks of a job that are queued, run, end just now, or will be queued again."""
    said = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=all", f"--jobs={job_id}", "--format=%i %T"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in said.stdout.splitlines() if line.split()[1] not in OVER]


def wait_until(true, seconds: float, what: str, every: float = 0.3):
    """The condition's first true value."""
    last = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < last, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)
    return value


def wait_for_end(job_id: str, seconds: float = 300) -> None:
    wait_until(lambda: not in_queue(job_id), seconds, f"the end of job {job_id}")


def attempts(job_id: str) -> list[tuple[str, str]]:
    """Task and state of every start of a job's tasks, oldest first, from the accounting."""
    said = subprocess.run(
        ["sacct", "-nPX", "--duplicates", f"--jobs={job_id}", "--format=JobID,State"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [(task, state.split()[0]) for task, state in (line.split("|") for line in said.stdout.splitlines())]


@dataclass(frozen=True)
class Process:
    """A process that works for a task, wherever it runs: the nodes of this Slurm are all on this machine."""

    pid: int
    kind: str
    """client, server, sandbox, step (its srun), watcher (a slurmstepd, whose death Slurm sees after minutes), or other."""
    slurm_job: str


def processes_of(job_id: str) -> list[Process]:
    """Every process of a job's tasks just now, by the cgroup that Slurm keeps it in, or by its environment."""
    command = ["squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%A"]
    jobs = set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())
    found = []
    step_kinds: dict[str, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            place = re.search(r"/job_(\d+)/step_\w+", (folder / "cgroup").read_text())
            named = re.search(rb"(?:^|\0)SLURM_JOB_ID=(\d+)", (folder / "environ").read_bytes())
        except OSError:
            continue
        if watcher := re.fullmatch(r"slurmstepd: \[(\d+)\.(\w+)\].*", words[0].strip()):
            job, kind = watcher[1], "watcher"
        else:
            job = place[1] if place else named[1].decode() if named else ""
            kind = kind_of(words)
        if job in jobs:
            found.append((Process(int(folder.name), kind, job), place[0] if place else ""))
            if kind in ("server", "sandbox", "client") and place:
                step_kinds[place[0]] = kind
    # what a sandbox or a server started belongs to it
    return [
        replace(process, kind=step_kinds.get(step, "other")) if process.kind == "other" else process
        for process, step in found
    ]


def kind_of(words: list[str]) -> str:
    if words[0].endswith("srun"):
        return "step"
    modules = {"mathmill.serving": "server", "mathmill.sandbox": "sandbox", "mathmill.generation": "client"}
    named = (kind for word in words for module, kind in modules.items() if word.startswith(module))
    return next(named, "other")
