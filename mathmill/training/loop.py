"""The training loop: steps from where the newest checkpoint is to the last, or until the time is up."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from mathmill.errors import UserError
from mathmill.files import write_whole
from mathmill.training.batches import Batch, Order, Units, block_mask, micro_batches
from mathmill.training.checkpoints import Checkpoints
from mathmill.training.hf_files import WeightFiles
from mathmill.training.model import Place, build_model, join, seed_step
from mathmill.training.options import TrainerOptions
from mathmill.training.progress import Progress, say
from mathmill.training.rows import Rows, make_rows, rows_sha
from mathmill.training.schedule import learning_rate, total_steps
from mathmill.training.shape import ModelShape, read_shape
from mathmill.training.weights import Part, load_weights

UNFINISHED = 75
"""EX_TEMPFAIL: the job stopped with work left, and is to be queued again."""


@dataclass(frozen=True)
class Training:
    """Everything that a step needs."""

    options: TrainerOptions
    shape: ModelShape
    place: Place
    model: DistributedDataParallel
    optimizer: Any
    train: Units
    validation: Units | None
    order: Order
    steps: int


def run(options: TrainerOptions, local_rank: int) -> int:
    """Train from the newest checkpoint, or from the model's own weights. 0: finished; 75: time was up."""
    stop = _Stop()
    shape = read_shape(Path(options.model))
    place = join(options, local_rank)
    training, data_sha = _prepare(options, shape, place)
    folder = Path(options.folder)
    checkpoints = Checkpoints(
        folder / "checkpoints", training.model.module, training.optimizer, asynchronous=options.async_save
    )
    first = checkpoints.newest()
    if first is None:
        _start_from_model(training)
        first = 0
    else:
        about = checkpoints.load(first)
        if about["data"] != data_sha or about["seed"] != options.seed:
            refuse(place, f"the rows or the seed changed since step {first} of {folder}; use another run")
    if place.rank == 0:
        _say_start(training, first)
    progress = Progress(options, training.steps, first) if place.rank == 0 else None
    about = {"data": data_sha, "seed": options.seed, "layout": {"tp": place.tp, "pp": place.pp, "dp": place.dp}}
    try:
        done = _steps(training, checkpoints, progress, stop, (first, about))
    finally:
        if progress is not None:
            progress.close()
    if done == training.steps:
        if place.rank == 0:
            write_whole(folder / "finished.json", f'{{"steps": {done}}}\n')
            say(f"finished: {done} steps")
        return 0
    if place.rank == 0:
        say(f"stopped after step {done} of {training.steps}: {stop.reason}")
    return UNFINISHED if done > first or stop.told else 1


def _steps(
    training: Training, checkpoints: Checkpoints, progress: Progress | None, stop: "_Stop", start: tuple[int, dict]
) -> int:
    """Train until the last step or until told to stop; gives the last step, whose checkpoint is whole."""
    options, step, about = training.options, *start
    last_save = time.monotonic()
    while step < training.steps:
        values = train_step(training, step, stop)
        step += 1
        if progress is not None:
            progress.step(step, **{name: value for name, value in values.items() if name not in ("stop", "save")})
        if training.validation is not None and _due(options.validate_every, step, training.steps):
            loss = validation_loss(training)
            if progress is not None:
                progress.validation(step, loss)
        checkpoints.poll()
        kept = _due(options.save_every, step, training.steps)
        if kept or values["stop"] or values["save"]:
            begin = time.monotonic()
            checkpoints.save(step, {**about, "kept": kept})
            last_save = time.monotonic()
            stop.saved(last_save - begin)
        stop.save_due = options.save_minutes is not None and time.monotonic() - last_save > 60 * options.save_minutes
        if values["stop"]:
            break
    checkpoints.close()
    return step


def _due(every: int | None, step: int, steps: int) -> bool:
    return step == steps or (every is not None and step % every == 0)


def _prepare(options: TrainerOptions, shape: ModelShape, place: Place) -> tuple[Training, str]:
    sha = rows_sha(options, options.data)
    train = _units(options, shape, place, options.data, sha)
    validation = None
    if options.validation_data:
        validation_sha = rows_sha(options, options.validation_data)
        validation = _units(options, shape, place, options.validation_data, validation_sha)
    model = build_model(shape, options, place)
    if options.precision == "bf16":
        model = Float16Module(model.config, model)
    on_gpu = options.device == "cuda"
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=options.distributed_optimizer, check_for_nan_in_grad=on_gpu
    )
    wrapped = DistributedDataParallel(model.config, ddp, model)
    wrapped.config.finalize_model_grads_func = finalize_model_grads
    config = OptimizerConfig(
        optimizer="adam",
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        clip_grad=options.clip_grad,
        bf16=options.precision == "bf16",
        params_dtype=torch.bfloat16 if options.precision == "bf16" else torch.float32,
        use_distributed_optimizer=options.distributed_optimizer,
    )
    optimizer = get_megatron_optimizer(config, [wrapped])
    wrapped.config.grad_scale_func = optimizer.scale_loss
    order = Order(len(train), options.seed)
    steps = total_steps(options, len(train))
    return Training(options, shape, place, wrapped, optimizer, train, validation, order, steps), sha


def _units(options: TrainerOptions, shape: ModelShape, place: Place, files: tuple[str, ...], sha: str) -> Units:
    """The rows of these files; rank 0 makes them where they are not there yet, and the others wait for it."""
    folder = Path(options.folder) / "rows" / sha
    problem: list[str | None] = [None]
    if place.rank == 0:
        try:
            about = make_rows(options, files, shape.end_token, folder)
            say(
                f"{about['rows']:,} rows of {about['tokens']:,} tokens, {about['learned_tokens']:,} counted by the loss; "
                f"{about['dropped']:,} rows dropped, {about['truncated']:,} cut"
            )
        except UserError as refused:
            problem = [str(refused)]
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        refuse(place, problem[0])
    return Units(Rows.open(folder), options.packing, options.context_length, options.seed)


def refuse(place: Place, problem: str) -> NoReturn:
    """End every rank over what all of them know; one of them says it."""
    if place.rank == 0:
        raise UserError(problem)
    raise SystemExit(2)


def _start_from_model(training: Training) -> None:
    shape, place, options = training.shape, training.place, training.options
    per_stage = shape.num_layers // place.pp
    layers = range(place.pp_rank * per_stage, (place.pp_rank + 1) * per_stage)
    experts = range(shape.num_experts)
    if options.expert_parallel > 1:
        from megatron.core import parallel_state

        each = shape.num_experts // options.expert_parallel
        at = parallel_state.get_expert_model_parallel_rank()
        experts = range(at * each, (at + 1) * each)
    files = WeightFiles(Path(options.model))
    model = training.model.module
    inner = model.module if isinstance(model, Float16Module) else model
    load_weights(inner, files, shape, layers, Part(place.tp_rank, place.tp), experts)
    files.close()
    training.optimizer.reload_model_params()


def train_step(training: Training, step: int, stop: "_Stop") -> dict[str, float]:
    """One step: loss over all counted tokens of the global batch, learning rate, gradient norm, speed."""
    options, place = training.options, training.place
    begin = time.monotonic()
    rate = learning_rate(options, step, training.steps)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = options.weight_decay * group.get("wd_mult", 1.0)
    seed_step(options, place, step)
    training.model.train()
    training.model.zero_grad_buffer()
    training.optimizer.zero_grad()
    chosen = training.order.step(step, options.global_batch)
    losses, length = _forward_backward(training, training.train, chosen, forward_only=False)
    worked, norm, _ = training.optimizer.step()
    if not worked:
        raise RuntimeError(f"step {step + 1}: the optimizer refused its gradients (norm {norm})")
    loss_sum, tokens, stopping, saving = _sums(losses, place, float(stop.now()), float(stop.save_due))
    seconds = time.monotonic() - begin
    num_tokens = sum(int(training.train.lengths[unit]) for unit in chosen)
    values = {
        "loss": loss_sum / tokens,
        "learning_rate": rate,
        "grad_norm": float(norm),
        "tokens_per_s_per_gpu": num_tokens / seconds / place.world,
    }
    if options.peak_tflops:
        rows = sum(len(training.train.members(unit)) for unit in chosen)
        flops = num_tokens * training.shape.flops_per_token(num_tokens // max(1, rows))
        values["utilisation"] = flops / seconds / place.world / (options.peak_tflops * 1e12)
    return {**values, "seconds": seconds, "padded_to": length, "stop": stopping, "save": saving}


@torch.no_grad()
def validation_loss(training: Training) -> float:
    """Loss per counted token over all validation rows."""
    assert training.validation is not None
    units, size = training.validation, training.options.global_batch
    training.model.eval()
    loss_sum = tokens = 0.0
    for start in range(0, len(units), size):
        chosen = [unit if unit < len(units) else -1 for unit in range(start, start + size)]
        losses, _ = _forward_backward(training, units, chosen, forward_only=True)
        part_sum, part_tokens, *_ = _sums(losses, training.place, 0.0, 0.0)
        loss_sum, tokens = loss_sum + part_sum, tokens + part_tokens
    return loss_sum / tokens


def _forward_backward(
    training: Training, units: Units, chosen: list[int], *, forward_only: bool
) -> tuple[list[torch.Tensor], int]:
    options, place = training.options, training.place
    multiple = max(8, place.tp if options.sequence_parallel else 1)
    batches, count, length = micro_batches(
        units, chosen, micro_batch=options.micro_batch, part=place.dp_rank, parts=place.dp, multiple=multiple
    )
    losses = get_forward_backward_func()(
        forward_step_func=_Forward(place),
        data_iterator=batches,
        model=training.model,
        num_microbatches=count,
        seq_length=length,
        micro_batch_size=options.micro_batch,
        forward_only=forward_only,
    )
    return losses, length


class _Forward:
    """megatron-core's forward step: a micro batch to the model's output, and how a loss comes of it."""

    def __init__(self, place: Place):
        self._place = place

    def __call__(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
        batch, device = next(batches), self._place.device
        tokens, labels, counted = (part.to(device) for part in (batch.tokens, batch.labels, batch.counted))
        positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        mask = packed = None
        if self._place.transformer_engine and batch.starts is not None:
            packed = _packed(batch, device)
        elif (blocks := block_mask(batch)) is not None:
            mask = blocks.to(device)
        output = model(tokens, positions, mask, labels=labels, packed_seq_params=packed)

        def loss_of(per_token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            total, number = (per_token.float() * counted).sum(), counted.sum()
            return total, number.int(), torch.stack([total.detach(), number]).double()

        return output, loss_of


def _packed(batch: Batch, device: torch.device) -> PackedSeqParams:
    """Where texts begin, for Transformer Engine, which wants one row."""
    assert batch.starts is not None and len(batch.starts) == 1
    length = batch.tokens.shape[1]
    edges = torch.tensor([*batch.starts[0], length], dtype=torch.int32, device=device)
    longest = int(edges.diff().max())
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=edges, cu_seqlens_kv=edges, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def _sums(losses: list[torch.Tensor], place: Place, *flags: float) -> list[float]:
    """Loss and tokens over all ranks, and how many ranks raise each flag. A tensor-parallel group has one loss between it."""
    own = torch.zeros(2, dtype=torch.float64, device=place.device)
    for pair in losses:
        own += pair / place.tp
    all_of = torch.cat([own, torch.tensor(flags, dtype=torch.float64, device=place.device)])
    dist.all_reduce(all_of)
    return all_of.tolist()


class _Stop:
    """When to stop: before the job's limit, by our own clock; or as soon as a step ends, when told to."""

    def __init__(self) -> None:
        at = os.environ.get("MATHMILL_STOP_AT")
        self._at = float(at) if at else None
        self._rank = int(os.environ.get("RANK", "0"))
        self._step_s = self._save_s = 0.0
        self._begun: float | None = None
        self.told = False
        self.save_due = False
        self.reason = "its time is up"
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._tell)

    def _tell(self, number: int, _: object) -> None:
        self.told, self.reason = True, f"told to by {signal.Signals(number).name}"

    def saved(self, seconds: float) -> None:
        """A save was over after so long."""
        self._save_s = max(self._save_s, seconds)
        self._begun = time.time()

    def now(self) -> bool:
        """Whether this rank asks to stop after the step that it is in: one more, with a save, would not fit in.

        Only rank 0 looks at the clock.
        """
        now = time.time()
        if self._begun is not None:
            self._step_s = max(self._step_s, now - self._begun)
        self._begun = now
        if self.told or self._at is None or self._rank:
            return self.told
        return now + self._step_s + self._save_s >= self._at


def _say_start(training: Training, first: int) -> None:
    place, options = training.place, training.options
    kernels = "Transformer Engine" if place.transformer_engine else "megatron-core's own layers"
    unit = "process" if place.world == 1 else "processes"
    say(
        f"{training.shape.num_parameters:,} parameters, {options.precision}, {kernels}; tensor {place.tp} x pipeline {place.pp} "
        f"x data {place.dp} = {place.world} {unit}; {training.steps} steps of {options.global_batch}, from step {first}"
    )
