"""Recipes: a whole dataset as one file, from sample sets to training sets, and to students. recipes/README.md has the keys."""

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec.structs import replace

from mathmill.errors import UserError
from mathmill.generation.sets import Sampling
from mathmill.paths import shipped
from mathmill.problems import evenly_spaced
from mathmill.records import Problem
from mathmill.selection.options import Output

BASE = "base"
"""What a student is called before any training."""


class SampleSetRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sample set: `problems` by their name in the recipe, a prompt, and how many samples each problem gets."""

    problems: str
    prompt: str
    num_samples: Annotated[int, msgspec.Meta(ge=1)]
    strategy: str = ""
    """Its name in the coverage report."""
    masks: str | None = None
    """The set of masked candidates from which its problems get their masked solutions."""


class TrainingSetRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training set, of sample sets or of earlier training sets, with options of prepare_sft_data.py by their names."""

    sample_sets: list[str] = []
    training_sets: list[str] = []
    filters: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    written: dict[str, Any] = {}
    licence: str = "other"


class StudentsRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Students: one model fine-tuned on each of these training sets, once a seed, by a recipe of recipes/sft/."""

    model: str
    """What they all begin as: a name under `models:` of the cluster's file, or a Hugging Face folder."""
    recipe: str
    options: dict[str, Any] = {}
    """In the place of that recipe's keys. `steps` has to be among the two: rows cannot be counted before they are made."""
    training_sets: list[str]
    seeds: list[int]


class EvaluationRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How students are evaluated, before and after: `--benchmarks` and `--settings` of run_evaluation.py."""

    benchmarks: str
    settings: Literal["openmathinstruct-1", "openmathinstruct-2"] = "openmathinstruct-1"
    control: str | None = None
    """The training set whose students the others are compared with."""


def sft_prompt_of(one: TrainingSetRecipe) -> str:
    """The prompt that students of a training set are taught with."""
    return str(one.written.get("sft_prompt", Output.sft_prompt))


class Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a certain model gets in the place of the recipe's problems and prompts; stages and numbers stay."""

    description: str
    problems: dict[str, str] = {}
    prompts: dict[str, str] = {}


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe file. The stages follow each other as the keys do here."""

    description: str
    model: str
    problems: dict[str, str]
    sampling: Sampling
    masks: dict[str, SampleSetRecipe] = {}
    """Sets of candidates for masked solutions."""
    samples: dict[str, SampleSetRecipe]
    masked_samples: dict[str, SampleSetRecipe] = {}
    training_sets: dict[str, TrainingSetRecipe] = {}
    unions: dict[str, list[str]] = {}
    """Further lines of the coverage report: what several strategies cover together."""
    students: StudentsRecipe | None = None
    evaluation: EvaluationRecipe | None = None
    """Of the students; required where there are any."""
    variants: dict[str, Variant] = {}
    name: str = ""

    def for_model(self, model: str) -> "Recipe":
        """The recipe with what its variant for this model, if it has one, puts in the place of problems and prompts."""
        variant = self.variants.get(model)
        if variant is None:
            return self

        def with_prompts(sets: dict[str, SampleSetRecipe]) -> dict[str, SampleSetRecipe]:
            return {
                name: replace(one, prompt=variant.prompts.get(one.prompt.partition("@")[0], one.prompt))
                for name, one in sets.items()
            }

        return replace(
            self,
            problems={**self.problems, **variant.problems},
            masks=with_prompts(self.masks),
            samples=with_prompts(self.samples),
            masked_samples=with_prompts(self.masked_samples),
        )

    def scaled(self, scale: float) -> "Recipe":
        """The recipe with the root of `scale` of the samples of each problem, and `scale` of the rows of training sets.

        The few candidates for masks stay as many as they are.
        """
        share = math.sqrt(scale)

        def fewer(sets: dict[str, SampleSetRecipe]) -> dict[str, SampleSetRecipe]:
            return {
                name: replace(one, num_samples=max(1, round(one.num_samples * share))) for name, one in sets.items()
            }

        def smaller(one: TrainingSetRecipe) -> TrainingSetRecipe:
            wanted = one.choice.get("num_samples")
            return one if wanted is None else replace(
                one, choice={**one.choice, "num_samples": max(1, round(wanted * scale))}
            )  # fmt: skip

        return replace(
            self,
            samples=fewer(self.samples),
            masked_samples=fewer(self.masked_samples),
            training_sets={name: smaller(one) for name, one in self.training_sets.items()},
        )


def some_of(problems: list[Problem], scale: float) -> list[Problem]:
    """The root of `scale` of the problems, at even distances."""
    return evenly_spaced(problems, max(1, round(len(problems) * math.sqrt(scale))))


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name in the shipped recipes/, or of a file. UserError, in one line, for what a user can mend."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped("recipes") / f"{name_or_path}.yaml"
        if not path.is_file():
            known = sorted(each.stem for each in shipped("recipes").glob("*.yaml"))
            raise UserError(f"no recipe '{name_or_path}'. Known: {', '.join(known)}, or a path to a yaml file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = msgspec.convert(content, Recipe)
    except FileNotFoundError:
        raise UserError(f"no recipe file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: no yaml: {' '.join(str(problem).split())}") from None
    except msgspec.ValidationError as problem:
        raise UserError(f"{path}: {problem}; recipes/README.md says what a recipe holds") from None
    _check_sampling(path, content["sampling"], recipe)
    _check_names(path, recipe)
    return replace(recipe, name=path.stem)


def _check_sampling(path: Path, content: dict[str, Any], recipe: Recipe) -> None:
    """UserError for a key that is not known, and for numbers that nothing can be sampled with."""
    sampling = recipe.sampling
    if unknown := sorted(set(content) - set(Sampling.__struct_fields__)):
        close = difflib.get_close_matches(unknown[0], Sampling.__struct_fields__, n=1)
        meant = f"; did you mean '{close[0]}'?" if close else f". Known: {', '.join(Sampling.__struct_fields__)}"
        raise UserError(f"{path}: sampling has no key '{unknown[0]}'{meant}")
    bounds = {
        "temperature": (0 <= sampling.temperature < math.inf, "at least 0"),
        "top_p": (0 < sampling.top_p <= 1, "above 0 and at most 1"),
        "code_timeout_s": (0 < sampling.code_timeout_s < math.inf, "above 0"),
        "max_code_executions": (sampling.max_code_executions >= 0, "at least 0"),
        **{
            name: (getattr(sampling, name) >= 1, "at least 1")
            for name in ("max_tokens", "max_tokens_per_round", "max_output_characters")
        },
    }
    for name, (is_right, said) in bounds.items():
        if not is_right:
            raise UserError(f"{path}: sampling.{name} must be {said}, not {getattr(sampling, name)}")
    for name, one in {**recipe.masks, **recipe.samples, **recipe.masked_samples}.items():
        if sampling.temperature == 0 and one.num_samples > 1:
            raise UserError(
                f"{path}: sampling.temperature 0 would make {one.num_samples} equal solutions in set {name}"
            )


def _check_names(path: Path, recipe: Recipe) -> None:
    """UserError where a set names problems, masks or sets that the recipe has not."""
    sets = {**recipe.masks, **recipe.samples, **recipe.masked_samples}
    if len(sets) != len(recipe.masks) + len(recipe.samples) + len(recipe.masked_samples):
        raise UserError(f"{path}: two sample sets have the same name; give each its own")
    wanted = [("problems", name, one.problems, [*recipe.problems]) for name, one in sets.items()]
    wanted += [("masks", name, one.masks or "", [*recipe.masks]) for name, one in recipe.masked_samples.items()]
    earlier: list[str] = []
    for name, one in recipe.training_sets.items():
        wanted += [("sample_sets", name, each, [*recipe.samples, *recipe.masked_samples]) for each in one.sample_sets]
        wanted += [("training_sets", name, each, list(earlier)) for each in one.training_sets]
        earlier.append(name)
    if recipe.students is not None:
        _check_students(path, recipe.students)
        wanted += [("training_sets", "students", each, list(earlier)) for each in recipe.students.training_sets]
        if recipe.evaluation is None:
            raise UserError(f"{path}: has students and no evaluation; say on which benchmarks they are compared")
        if (control := recipe.evaluation.control) is not None:
            wanted.append(("control", "evaluation", control, recipe.students.training_sets))
    for key, name, value, known in wanted:
        if value not in known:
            close = difflib.get_close_matches(value, known, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else f". Known: {', '.join(known) or 'none'}"
            raise UserError(f"{path}: {name} names {key} '{value}', which is not there{meant}")


def _check_students(path: Path, students: StudentsRecipe) -> None:
    """UserError where names would clash, or a key says what another one does."""
    for key, values in (("seeds", students.seeds), ("training_sets", students.training_sets)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{path}: students.{key} must be different ones, one at least")
    if wrong := [
        name for name in students.training_sets if name == BASE or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._]*", name)
    ]:
        raise UserError(
            f"{path}: a training set of students cannot be called '{wrong[0]}'; letters, digits, . and _, not '{BASE}'"
        )
    for key, instead in (("model", "students.model"), ("seed", "students.seeds"), ("epochs", "steps")):
        if key in students.options:
            raise UserError(f"{path}: students.options.{key}: say {instead} instead")
