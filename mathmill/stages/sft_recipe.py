"""Recipes: everything that a training needs but the place of data and model, one yaml file each in recipes/sft/."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mathmill.errors import UserError
from mathmill.launch.strict_yaml import read_strictly
from mathmill.paths import shipped


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every key that a recipe may have; `recipes/sft/README.md` explains each."""

    description: str = "???"
    source: str = ""
    model: str = "???"
    model_config: dict[str, Any] = field(default_factory=dict)
    device: Literal["cuda", "cpu"] = "cuda"
    precision: Literal["bf16", "fp32"] = "bf16"
    num_nodes: int = 1
    processes_per_node: int | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    sequence_parallel: bool = False
    recompute: Literal["none", "selective", "full"] = "full"
    distributed_optimizer: bool = True
    global_batch: int = 128
    micro_batch: int = 1
    epochs: float | None = None
    steps: int | None = None
    context_length: int = 4096
    packing: bool = False
    too_long: Literal["drop", "truncate"] = "drop"
    train_on_code_output: bool = True
    add_bos: bool = True
    end_text: str | None = None
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
    saves_per_epoch: int | None = None
    save_minutes: float | None = 30.0
    async_save: bool = True
    validate_every: int | None = None
    log_every: int = 1


def recipe_files() -> dict[str, Path]:
    """Every recipe that a name can mean: `./recipes/sft` goes before the shipped folder."""
    folders = [shipped("recipes") / "sft", Path("recipes/sft")]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of this name, or in this file. A mistake in the file is a UserError that names file and key."""
    known = recipe_files()
    path = known.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise UserError(f"no recipe '{name_or_path}'. Known: {', '.join(sorted(known))}; or give a yaml file")
    recipe = read_strictly(Recipe, path, f"recipes/sft/{path.name}" if path == known.get(path.stem) else str(path))
    if (recipe.epochs is None) == (recipe.steps is None):
        raise UserError(f"{path}: give either epochs or steps")
    return recipe
