"""Checkpoints in megatron-core's distributed format: written whole or not at all, read back under any layout.

`checkpoints/step-00000100/` holds `weights`, `optimizer` and `about.json`. It is written under a name with a dot and renamed when
every rank's part is on disk, so a name without a dot is a whole checkpoint. Of older ones that are kept only `weights` stays.
"""

import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from mathmill.errors import UserError
from mathmill.files import sync_folder, write_whole
from mathmill.parent import end_with

METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
"""megatron-core's form of the optimizer's state that another layout can read."""


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08}"


def whole_steps(folder: Path) -> list[int]:
    """Steps with a whole checkpoint that holds the optimizer too, in order."""
    return sorted(_step(path) for path in folder.glob("step-*") if (path / "optimizer").is_dir())


def kept_steps(folder: Path) -> list[int]:
    """Steps whose weights are there to be exported."""
    return sorted(_step(path) for path in folder.glob("step-*") if read_about(path)["kept"])


def read_about(path: Path) -> dict[str, Any]:
    """What `save` was told of a checkpoint. UserError for a damaged one."""
    try:
        return json.loads((path / "about.json").read_text())
    except (OSError, ValueError) as problem:
        raise damaged(path, problem) from None


def damaged(path: Path, problem: BaseException) -> UserError:
    """What is said of a checkpoint that is named as whole and cannot be read."""
    reason = " ".join(f"{type(problem).__name__} {problem}".split())[:200]
    return UserError(
        f"{path} cannot be read ({reason}); if its files are damaged, remove it: the same command then goes on without"
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def results_queue() -> SyncManager:
    """The process behind megatron-core's queue of write results, which by itself would outlive a rank that is killed."""
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(end_with, (os.getpid(),))  # which stands where its import brings no torch with it
    filesystem_async._results_queue = manager.Queue()
    return manager


def adams(optimizer: Any) -> list[tuple[Any, torch.optim.AdamW]]:
    """megatron-core's optimizers around torch's own AdamW: where neither Transformer Engine nor Apex is installed.

    megatron-core 0.16.1 does not read its own files into these: it asks for a step number before there is one, wants one in
    every parameter's saved state where it wrote none, and leaves all parameters with one tensor, which each would count up.
    """
    parts = [(part, getattr(part, "optimizer", None)) for part in optimizer.chained_optimizers]
    return [(part, adam) for part, adam in parts if isinstance(adam, torch.optim.AdamW)]


def allocate_state(optimizer: Any) -> None:
    """Before loading: something to load into."""
    for part, adam in adams(optimizer):
        for parameter in (parameter for group in adam.param_groups for parameter in group["params"]):
            if not adam.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                adam.state[parameter] = {"step": torch.tensor(0.0), **moments}
        if isinstance(part, DistributedOptimizer):
            part._set_main_param_and_optimizer_states = partial(_set_states, part)


def _set_states(part: DistributedOptimizer, parameter: torch.nn.Parameter, saved: dict[str, torch.Tensor]) -> None:
    for name, here in part._get_main_param_and_optimizer_states(parameter).items():
        if name != "step":
            here.copy_(saved[name])


def restore_steps(optimizer: Any) -> None:
    """After loading: each parameter's own step number, from its group's."""
    for _, adam in adams(optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                step = float(group["step"] if "step" in group else adam.state[parameter]["step"])
                adam.state[parameter]["step"] = torch.tensor(step)


@dataclass(frozen=True)
class _Writing:
    step: int
    beside: Path


class Checkpoints:
    """The folder of checkpoints, as all ranks together use it. Every method is called by all of them."""

    def __init__(self, folder: Path, model: Any, optimizer: Any, *, asynchronous: bool):
        self._folder = folder
        self._model = model
        self._optimizer = optimizer
        self._queue = AsyncCallsQueue() if asynchronous else None
        self._writing: _Writing | None = None
        self._results = results_queue()
        if dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for torn in folder.glob(".*"):
                shutil.rmtree(torn, ignore_errors=True)
        dist.barrier()

    def newest(self) -> int | None:
        """The step to go on from; rank 0's word, since others may see the folder late."""
        steps = whole_steps(self._folder)
        found = [steps[-1] if steps else None]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def load(self, step: int) -> dict[str, Any]:
        """Set model and optimizer to what they were after this step; gives what `save` was told. UserError if it is damaged."""
        path = step_folder(self._folder, step)
        about = read_about(path)
        try:
            self._load(path)
        except torch.OutOfMemoryError:
            raise
        except CheckpointException as several:  # no Exception: torch gives what each rank met
            raise damaged(path, next(iter(several.failures.values()))[0]) from None
        except Exception as problem:  # what pickle and megatron-core raise on files that are cut or mixed
            raise damaged(path, problem) from None
        return about

    def _load(self, path: Path) -> None:
        model = self._model_state()
        loaded = dist_checkpointing.load({"model": model}, str(path / "weights"))
        self._model.load_state_dict(loaded["model"], strict=True)
        allocate_state(self._optimizer)
        state = self._optimizer_state(is_loading=True)
        loaded = dist_checkpointing.load({"optimizer": state}, str(path / "optimizer"))
        self._optimizer.load_state_dict(loaded["optimizer"])
        restore_steps(self._optimizer)

    def save(self, step: int, about: dict[str, Any]) -> None:
        """Write a checkpoint; asynchronously it is whole only after a later `poll` or `finish`."""
        self.finish()
        beside = self._folder / f".step-{step:08}"
        if dist.get_rank() == 0:
            for part in ("weights", "optimizer"):
                (beside / part).mkdir(parents=True)
            write_whole(beside / "about.json", json.dumps({"step": step, **about}, indent=1) + "\n")
        dist.barrier()
        self._writing = _Writing(step, beside)
        # One after the other: megatron-core 0.16 has one queue for the results of all writers, and mixes those of two.
        # Only the optimizer's part is asynchronous, six sevenths of the bytes in bf16.
        dist_checkpointing.save({"model": self._model_state()}, str(beside / "weights"), content_metadata=METADATA)
        request = dist_checkpointing.save(
            {"optimizer": self._optimizer_state(is_loading=False)},
            str(beside / "optimizer"),
            async_sharded_save=self._queue is not None,
            content_metadata=METADATA,
        )
        if request is None or self._queue is None:
            self._written()
        else:
            request.add_finalize_fn(self._written)
            self._queue.schedule_async_request(request)

    def poll(self) -> None:
        """Between steps: give a checkpoint its name if it is on disk by now."""
        if self._queue is not None and self._writing is not None:
            self._queue.maybe_finalize_async_calls()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._queue is not None:
            self._queue.maybe_finalize_async_calls(blocking=True)

    def close(self) -> None:
        self.finish()
        if self._queue is not None:
            self._queue.close()

    def _written(self) -> None:
        assert self._writing is not None
        dist.barrier()
        if dist.get_rank() == 0:
            self._publish(self._writing)
        dist.barrier()
        self._writing = None

    def _publish(self, writing: _Writing) -> None:
        for part in ("weights", "optimizer", "."):
            sync_folder(writing.beside / part)
        target = step_folder(self._folder, writing.step)
        if target.exists():  # an older start's, which lacks the optimizer
            shutil.rmtree(target)
        os.rename(writing.beside, target)
        sync_folder(self._folder)
        for step in whole_steps(self._folder):
            if step >= writing.step:
                continue
            old = step_folder(self._folder, step)
            away = self._folder / f".old-{step:08}"
            os.rename(old / "optimizer" if read_about(old)["kept"] else old, away)
            shutil.rmtree(away, ignore_errors=True)

    def _model_state(self) -> dict[str, Any]:
        return self._model.sharded_state_dict(metadata=dict(METADATA))

    def _optimizer_state(self, *, is_loading: bool) -> dict[str, Any]:
        return self._optimizer.sharded_state_dict(self._model_state(), is_loading=is_loading, metadata=dict(METADATA))
