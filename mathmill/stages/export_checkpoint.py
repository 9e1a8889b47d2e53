"""Checkpoints of a training as Hugging Face folders."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mathmill.errors import UserError
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import LaunchOptions, cluster_for, launch
from mathmill.options import script
from mathmill.run import Run, find_run

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
SHARD_GB = 5.0


@dataclass(frozen=True, kw_only=True)
class ExportOptions(LaunchOptions):
    """Write checkpoints of a training as Hugging Face folders, tensor by tensor: RUN/exported/step-N."""

    run: Positional[str | None] = None
    """The training's run, a name or a folder (unset: the newest run)."""
    step: int | None = None
    """Which checkpoint (unset: the newest kept one)."""
    all: bool = False
    """Every kept checkpoint that is not exported yet."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type of the written weights (unset: as trained)."""
    max_shard_gb: float = SHARD_GB
    """Largest file, in GB."""


def main() -> None:
    script(ExportOptions, run_export)


def run_export(options: ExportOptions) -> int:
    """Launch the export of what is asked and not there yet."""
    run = find_run(options.run)
    steps = chosen_steps(run, options)
    model = trained_model(run)
    exports = [
        (str(checkpoints_of(run) / f"step-{step:08}" / "weights"), str(exported_folder(run, step))) for step in steps
    ]
    missing = [pair for pair in exports if not Path(pair[1]).exists()]
    if not missing:
        print(f"{', '.join(target for _, target in exports)}: exported already; nothing to do", file=sys.stderr)
        print_next(exports[-1][1])
        return 0
    cluster = cluster_for(options)
    section = {
        "model": model,
        "exports": missing,
        "max_shard_bytes": shard_bytes(options.max_shard_gb),
        "dtype": DTYPES[options.dtype] if options.dtype else None,
    }
    job = weights_job("export", section, (f"{model}:{model}:ro",))
    summary = [("work", f"{len(missing)} of {len(exports)} checkpoints: steps {', '.join(map(str, steps))}")]
    code = launch([job], cluster, run, options, summary)
    if code == 0 and not (options.dry_run or options.test_only):
        print_next(exports[-1][1])
    return code


def weights_job(name: str, section: dict, mounts: tuple[str, ...]) -> Job:
    """A job that reads and writes weights: one process, in the trainer's image, without a GPU."""
    module = {"export": "mathmill.training.export", "average": "mathmill.training.averaging"}[name]
    step = Step(name=name, role="trainer", module=module, main=True, mounts=mounts)
    return Job(name=name, steps=(step,), options={name: section})


def shard_bytes(gigabytes: float) -> int:
    if not gigabytes > 0:
        raise UserError(f"--max_shard_gb must be more than 0, not {gigabytes:g}")
    return int(gigabytes * 1e9)


def checkpoints_of(run: Run) -> Path:
    return run.folder / "training" / "checkpoints"


def exported_folder(run: Run, step: int) -> Path:
    return run.folder / "exported" / f"step-{step:08}"


def kept_steps(run: Run) -> list[int]:
    """Steps whose weights are kept for export."""
    steps = []
    for path in sorted(checkpoints_of(run).glob("step-*/about.json")):
        try:
            about = json.loads(path.read_text())
        except ValueError as problem:
            raise UserError(
                f"{path} cannot be read ({problem}); remove that checkpoint's folder if it is damaged"
            ) from None
        steps += [about["step"]] * about["kept"]
    return steps


def chosen_steps(run: Run, options: ExportOptions) -> list[int]:
    if options.all and options.step is not None:
        raise UserError("--all and --step contradict each other; give one")
    kept = kept_steps(run)
    if not kept:
        raise UserError(f"{run.name} has no kept checkpoint yet; look with: python pipeline/status.py {run.name}")
    if options.all:
        return kept
    if options.step is not None and options.step not in kept:
        raise UserError(f"{run.name} has no kept checkpoint of step {options.step}. Kept: {', '.join(map(str, kept))}")
    return [options.step if options.step is not None else kept[-1]]


def trained_model(run: Run) -> str:
    """The Hugging Face folder that the training started from."""
    for path in sorted(run.jobs.glob("training*.json")):
        if model := json.loads(path.read_text()).get("trainer", {}).get("model"):
            return model
    raise UserError(f"{run.name} is no training; its jobs have no trainer")


def print_next(folder: str) -> None:
    print(f"next       python pipeline/run_generation.py --model {folder} --run NAME", file=sys.stderr)
