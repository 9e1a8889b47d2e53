"""The average of exported checkpoints, as a model."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mathmill.errors import UserError
from mathmill.launch.launching import LaunchOptions, cluster_for, launch
from mathmill.options import script
from mathmill.run import Run, find_run
from mathmill.stages.export_checkpoint import (
    DTYPES,
    SHARD_GB,
    exported_folder,
    kept_steps,
    print_next,
    shard_bytes,
    weights_job,
)


@dataclass(frozen=True, kw_only=True)
class AverageOptions(LaunchOptions):
    """Average exported checkpoints in float32, tensor by tensor: RUN/exported/average."""

    run: Positional[str | None] = None
    """The training's run, a name or a folder (unset: the newest run)."""
    models: tuple[Path, ...] = ()
    """Hugging Face folders to average (unset: all kept checkpoints of the run, which must be exported)."""
    last: int | None = None
    """Only so many of the run's checkpoints, the newest."""
    output: Path | None = None
    """Where the average goes (unset: exported/average in the run)."""
    dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Type of the written weights (unset: as the first model's). Sums are float32 in any case."""
    max_shard_gb: float = SHARD_GB
    """Largest file, in GB."""


def main() -> None:
    script(AverageOptions, run_average)


def run_average(options: AverageOptions) -> int:
    """Launch the averaging, unless the average is there."""
    run = find_run(options.run)
    models = [path.resolve() for path in options.models] or exported_models(run, options.last)
    target = (options.output or run.folder / "exported" / "average").resolve()
    if target.exists():
        print(f"{target} is there already; nothing to do", file=sys.stderr)
        print_next(str(target))
        return 0
    for model in models:
        if not (model / "config.json").is_file():
            raise UserError(f"{model} is no Hugging Face model folder (no config.json)")
    if len(models) < 2:
        raise UserError(f"an average needs two models or more; {run.name} has {len(models)}")
    cluster = cluster_for(options)
    section = {
        "models": [str(model) for model in models],
        "target": str(target),
        "max_shard_bytes": shard_bytes(options.max_shard_gb),
        "dtype": DTYPES[options.dtype] if options.dtype else None,
    }
    outside = {str(model) for model in models if not model.is_relative_to(run.folder)}
    mounts = [f"{place}:{place}:ro" for place in sorted(outside)]
    if not target.is_relative_to(run.folder):
        mounts.append(f"{target.parent}:{target.parent}")
    summary = [("work", f"the mean of {len(models)} models: {', '.join(model.name for model in models)}")]
    code = launch([weights_job("average", section, tuple(mounts))], cluster, run, options, summary)
    if code == 0 and not (options.dry_run or options.test_only):
        print_next(str(target))
    return code


def exported_models(run: Run, last: int | None) -> list[Path]:
    steps = kept_steps(run)
    if last is not None:
        if last < 2:
            raise UserError(f"--last must be at least 2, not {last}")
        steps = steps[-last:]
    folders = [exported_folder(run, step) for step in steps]
    if missing := [folder.name for folder in folders if not folder.exists()]:
        raise UserError(
            f"{', '.join(missing)} of {run.name} not exported yet: python pipeline/export_checkpoint.py {run.name} --all"
        )
    return folders
