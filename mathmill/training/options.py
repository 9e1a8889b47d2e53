"""What a training is told: what a recipe may say of it, and what reaches every rank as a section of the job's JSON file."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from mathmill.errors import UserError

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train: what a recipe may say, and a trainer is told."""

    device: Literal["cuda", "cpu"] = "cuda"
    precision: Precision = "bf16"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    sequence_parallel: bool = False
    recompute: Literal["none", "selective", "full"] = "full"
    distributed_optimizer: bool = True
    """Its state divided among the data-parallel ranks."""

    global_batch: int = 128
    """Rows of one step, over all ranks; with packing, packs."""
    micro_batch: int = 1
    epochs: float | None = None
    steps: int | None = None
    context_length: int = 4096
    packing: bool = False
    too_long: Literal["drop", "truncate"] = "drop"
    train_on_code_output: bool = True
    add_bos: bool = True
    """As the tokenizer does by itself, and so the servers."""
    end_text: str | None = None
    """The token that ends a solution; None: config.json's eos_token_id."""

    learning_rate: float = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    min_learning_rate: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    clip_grad: float = 1.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    moe_aux_loss: float = 0.0
    seed: int = 0

    save_every: int | None = None
    """Steps between checkpoints whose weights are kept, to be exported and averaged."""
    save_minutes: float | None = 30.0
    """Between checkpoints that only a restart needs; the newest one is kept."""
    async_save: bool = True
    validate_every: int | None = None
    log_every: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainerOptions(TrainingSettings):
    """One training. Paths are absolute; the folder holds everything that it writes."""

    folder: str
    """Where checkpoints, metrics and the tokenised rows go."""
    model: str
    """The Hugging Face folder that training starts from."""
    data: tuple[str, ...]
    """Files of JSON lines, in order."""
    validation_data: tuple[str, ...] = ()
    input_field: str = "input"
    output_field: str = "output"

    peak_tflops: float | None = None
    """Of one GPU in this precision, for the utilisation."""
    wandb_project: str | None = None
    group_timeout_minutes: float = 60.0
    """How long ranks wait for one another: also while one of them tokenises the rows."""


def trainer_options(section: dict[str, Any]) -> TrainerOptions:
    """The options of a job's JSON file. UserError on a key that this version does not know."""
    known = {field.name for field in fields(TrainerOptions)}
    if unknown := sorted(set(section) - known):
        raise UserError(f"trainer options: unknown {', '.join(unknown)}")
    section = dict(section)
    for name in ("data", "validation_data"):
        section[name] = tuple(section.get(name, ()))
    return TrainerOptions(**section)
