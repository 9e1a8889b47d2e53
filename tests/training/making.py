"""Trainings of the bundled model, small enough for a test: rows, options, and torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mathmill.prompts import load_prompt, prompt_text
from mathmill.words import generate

REPO = Path(__file__).resolve().parents[2]
WORDS = REPO / "models" / "words"


def write_rows(path: Path, count: int = 200) -> Path:
    """Word problems and their solutions, as a training set has them."""
    prompt = load_prompt("code_sft")
    rows = [
        {"problem_id": one.problem_id, "input": prompt_text(prompt, one), "output": one.reference_solution}
        for one in generate("train", count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options_for(folder: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    """Options of a training on processors."""
    return {
        "folder": str(folder), "model": str(WORDS), "data": [str(rows)], "device": "cpu", "precision": "fp32",
        "recompute": "none", "global_batch": 8, "micro_batch": 2, "steps": 6, "context_length": 256,
        "learning_rate": 2e-4, "async_save": True, **changes,
    }  # fmt: skip


def start(options: dict[str, Any], processes: int, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """torchrun with this many ranks, as a job's script starts it."""
    folder = Path(options["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"trainer": options}))
    command = [sys.executable, "-m", "mathmill.training.torchrun", f"--nproc_per_node={processes}", "-m"]
    return subprocess.Popen(
        [*command, "mathmill.training", str(job)],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(options: dict[str, Any], processes: int, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a training to its end; its exit code and what it said."""
    process = start(options, processes, env)
    output, _ = process.communicate(timeout=500)
    return process.returncode, output


def losses(folder: Path) -> list[float]:
    """The loss of every step, in order; every step once."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, len(steps) + 1)), steps
    return [row["loss"] for row in rows if "loss" in row]
