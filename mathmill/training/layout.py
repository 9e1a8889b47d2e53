"""What must divide what before a training can start, and the memory that it will take on each GPU. Plain arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass

from mathmill.training.options import TrainerOptions
from mathmill.training.shape import ModelShape


def data_parallel(options: TrainerOptions, processes: int) -> int:
    return processes // (options.tensor_parallel * options.pipeline_parallel)


def mistakes(shape: ModelShape, options: TrainerOptions, processes: int, per_node: int) -> Iterator[str]:
    """Why this cannot be trained so, a line each."""
    wrong = list(_wrong_numbers(options))
    if wrong:
        yield from wrong
        return
    tp, pp = options.tensor_parallel, options.pipeline_parallel
    sizes = {"attention heads": shape.num_heads, "key-value heads": shape.num_kv_heads}
    sizes |= {"feed-forward width": shape.ffn_size, "vocabulary": shape.vocab_size}
    for name, size in sizes.items():
        if size % tp:
            yield f"--tensor_parallel {tp} does not divide the {size:,} {name} of the model"
    if shape.num_layers % pp:
        yield f"--pipeline_parallel {pp} does not divide the {shape.num_layers} layers of the model"
    if tp > per_node or per_node % tp:
        yield f"--tensor_parallel {tp} does not divide the {per_node} processes of a node; it must stay inside one"
    if processes % (tp * pp):
        yield f"{processes} processes cannot be shared out to tensor {tp} x pipeline {pp}"
        return
    dp = data_parallel(options, processes)
    if options.global_batch % (options.micro_batch * dp):
        yield (
            f"--global_batch {options.global_batch} is not divisible by micro batch {options.micro_batch} x data parallel {dp} "
            f"({processes} processes / tensor {tp} / pipeline {pp})"
        )
    yield from _wrong_experts(shape, options, dp)
    yield from _wrong_together(shape, options)


def _wrong_numbers(options: TrainerOptions) -> Iterator[str]:
    for name in ("tensor_parallel", "pipeline_parallel", "expert_parallel", "global_batch", "micro_batch"):
        if getattr(options, name) < 1:
            yield f"--{name} must be at least 1, not {getattr(options, name)}"
    for name in ("steps", "epochs", "save_every", "validate_every", "log_every", "save_minutes", "learning_rate"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            yield f"--{name} must be more than 0, not {value}"


def _wrong_experts(shape: ModelShape, options: TrainerOptions, dp: int) -> Iterator[str]:
    ep = options.expert_parallel
    if shape.num_experts and options.tensor_parallel > 1 and not options.sequence_parallel:
        # megatron-core refuses it in the first step: every rank would send all tokens to the experts
        other = "use --pipeline_parallel" if options.device == "cpu" else "add --sequence_parallel"
        yield f"a mixture of experts is not trained with --tensor_parallel {options.tensor_parallel} alone: {other}"
    if ep == 1:
        return
    if not shape.num_experts or shape.num_experts % ep or dp % ep:
        yield f"--expert_parallel {ep} must divide the {shape.num_experts} experts of the model and data parallel {dp}"
    elif options.device == "cpu":
        yield "--expert_parallel needs GPUs: megatron-core's exchange between experts does not run on a CPU"


def _wrong_together(shape: ModelShape, options: TrainerOptions) -> Iterator[str]:
    if options.context_length > shape.context_length:
        yield f"--context_length {options.context_length} is more than the model's {shape.context_length}"
    if options.sequence_parallel and options.device == "cpu":
        yield "--sequence_parallel needs GPUs: megatron-core's own RMSNorm does not know it"
    if options.sequence_parallel and options.tensor_parallel == 1:
        yield "--sequence_parallel splits what --tensor_parallel leaves whole, so it needs one above 1"
    if options.packing and options.micro_batch > 1 and options.device == "cuda":
        yield f"--packing wants --micro_batch 1, not {options.micro_batch}: a pack is a row of its own"
    if options.packing and shape.window is not None and shape.window < options.context_length:
        yield f"--packing and attention that looks back {shape.window} positions only do not go together here"


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest GPU, by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def text(self, unit: str) -> str:
        """As one reads it; `unit` is what has so much memory, `GPU` or `process`."""
        parts = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in vars(self).items())
        return f"{self.total / 1e9:,.1f} GB a {unit} ({parts})"


def memory_estimate(shape: ModelShape, options: TrainerOptions, processes: int) -> Memory:
    """The most that a stage needs. bf16: weights 2 bytes, gradients 4, master weights and two moments 12.

    Activations after Korthikanti et al., arXiv 2205.05198, sections 4 and 5, without the scores, which flash attention never
    writes: a layer takes 34 bytes x tokens x width in 16 bits, of which tensor parallelism divides 24, and sequence parallelism
    all; with full recomputation only a layer's input stays. The first stage holds as many micro batches as there are stages.
    """
    tp, pp, dp = options.tensor_parallel, options.pipeline_parallel, data_parallel(options, processes)
    most = max(_stage_parameters(shape, options, stage) for stage in {0, pp - 1})
    bf16 = options.precision == "bf16"
    state = (12 if bf16 else 8) * most
    layers = shape.num_layers // pp
    tokens = options.micro_batch * options.context_length
    one = tokens * shape.hidden_size * (1 if bf16 else 2)
    experts = max(1, shape.experts_per_token)
    split = 24 + 12 * (experts - 1)
    layer = one * (34 + split - 24) // tp if options.sequence_parallel else one * 10 + one * split // tp
    if options.recompute == "full":
        kept = 2 * one // (tp if options.sequence_parallel else 1)
        activations = pp * layers * kept + layer
    else:
        activations = pp * layers * layer
    logits = tokens * shape.vocab_size * 10 // tp  # in 16 bits, in 32, and their gradient
    return Memory(
        weights=(2 if bf16 else 4) * most,
        gradients=4 * most,
        optimizer=state // (dp if options.distributed_optimizer else 1),
        activations=activations + (logits if pp == 1 else max(0, logits - (pp - 1) * activations // pp)),
    )


def _stage_parameters(shape: ModelShape, options: TrainerOptions, stage: int) -> int:
    """Parameters of one GPU of a stage."""
    tp, pp = options.tensor_parallel, options.pipeline_parallel
    experts = shape.num_experts * shape.expert_parameters // options.expert_parallel
    layers = shape.num_layers // pp * (shape.layer_parameters + experts) // tp
    vocabulary = shape.vocab_size * shape.hidden_size // tp
    ends = (stage == 0) + (stage == pp - 1 and not (pp == 1 and shape.tied_embeddings))
    return layers + ends * vocabulary
