"""Recipes: everything that a training needs but the place of data and model, one yaml file each in recipes/sft/."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mathmill.errors import UserError
from mathmill.launch.strict_yaml import read_strictly
from mathmill.paths import shipped
from mathmill.training.options import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingSettings):
    """Every key that a recipe may have; `recipes/sft/README.md` explains each."""

    description: str = "???"
    source: str = ""
    model: str = "???"
    model_config: dict[str, Any] = field(default_factory=dict)
    num_nodes: int = 1
    processes_per_node: int | None = None
    saves_per_epoch: int | None = None


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
