"""What is refused before a training, what it is estimated to take, and that every recipe is as published."""

from dataclasses import fields, replace

import pytest

from mathmill.errors import UserError
from mathmill.stages.sft_recipe import Recipe, load_recipe, recipe_files
from mathmill.training.layout import memory_estimate, mistakes
from mathmill.training.options import TrainerOptions
from mathmill.training.shape import ModelShape, shape_of

PUBLISHED = {
    "openmath-mistral-7b": (4, None, 1e-6, 64, 4, 1, 128),
    "openmath-codellama-7b": (4, None, 2e-5, 64, 4, 1, 128),
    "openmath-codellama-13b": (4, None, 2e-5, 64, 4, 1, 128),
    "openmath-codellama-34b": (4, None, 1e-5, 128, 8, 1, 128),
    "openmath-llama2-70b": (2, None, 1e-5, 256, 8, 2, 128),
    "openmath-codellama-70b": (3, None, 1e-5, 256, 8, 2, 128),
    "openmath2-llama3.1-8b": (None, 60_000, 2e-5, 64, 4, 1, 512),
    "openmath2-llama3.1-70b": (None, 20_000, 1e-5, 256, 8, 2, 512),
}
"""Epochs, steps, learning rate, GPUs, TP, PP, batch: arXiv 2402.10176, table 12; arXiv 2410.01560, section 4."""


def trainer(recipe: Recipe, **changes: object) -> TrainerOptions:
    shared = {each.name for each in fields(TrainerOptions)} & {each.name for each in fields(Recipe)} - {"model"}
    said = {name: getattr(recipe, name) for name in shared}
    return TrainerOptions(folder="/f", model="/m", data=("/d",), **{**said, **changes})  # type: ignore[arg-type]


def big() -> tuple[ModelShape, TrainerOptions]:
    recipe = load_recipe("openmath-codellama-70b")
    return shape_of(recipe.model_config, "recipe"), trainer(recipe)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_as_published_and_passes_its_checks(name: str):
    recipe = load_recipe(name)
    shape, options = shape_of(recipe.model_config, name), trainer(recipe)
    gpus = recipe.num_nodes * (recipe.processes_per_node or 0)
    published = (*PUBLISHED[name][:3], gpus, *PUBLISHED[name][4:])

    assert PUBLISHED[name] == published
    assert (
        recipe.epochs, recipe.steps, recipe.learning_rate, gpus, recipe.tensor_parallel, recipe.pipeline_parallel,
        recipe.global_batch,
    ) == PUBLISHED[name]  # fmt: skip
    assert list(mistakes(shape, options, gpus, 8)) == []
    assert memory_estimate(shape, options, gpus).total < 80e9


def test_every_published_recipe_has_its_row_here():
    assert {name for name in recipe_files() if name.startswith("openmath")} == set(PUBLISHED)


def test_parameters_are_counted_as_the_models_are_named():
    named = {"openmath-mistral-7b": 7.24, "openmath-codellama-34b": 33.7, "openmath2-llama3.1-8b": 8.03}
    named |= {"openmath-llama2-70b": 68.98, "openmath2-llama3.1-70b": 70.55}

    counted = {name: shape_of(load_recipe(name).model_config, name).num_parameters / 1e9 for name in named}

    assert counted == pytest.approx(named, rel=0.002)


@pytest.mark.parametrize(
    ("changes", "processes", "said"),
    [
        ({"tensor_parallel": 3}, 256, "--tensor_parallel 3 does not divide the 64 attention heads of the model"),
        ({"pipeline_parallel": 3}, 192, "--pipeline_parallel 3 does not divide the 80 layers of the model"),
        ({"global_batch": 100}, 256, "--global_batch 100 is not divisible by micro batch 1 x data parallel 16"),
        ({"tensor_parallel": 16}, 256, "--tensor_parallel 16 does not divide the 8 key-value heads of the model"),
        ({}, 250, "250 processes cannot be shared out to tensor 8 x pipeline 2"),
        ({"context_length": 32768}, 256, "--context_length 32768 is more than the model's 16384"),
        ({"expert_parallel": 2}, 256, "--expert_parallel 2 must divide the 0 experts of the model"),
        ({"global_batch": 0}, 256, "--global_batch must be at least 1, not 0"),
        ({"learning_rate": float("nan")}, 256, "--learning_rate must be more than 0, not nan"),
        ({"packing": True, "micro_batch": 2}, 256, "--packing wants --micro_batch 1, not 2"),
    ],
)
def test_a_wrong_layout_is_told_in_one_line(changes: dict, processes: int, said: str):
    shape, options = big()

    first = next(mistakes(shape, replace(options, **changes), processes, 8))

    assert first.startswith(said)
    assert "\n" not in first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "a mixture of experts is not trained with --tensor_parallel 8 alone: add --sequence_parallel"),
        ({"sequence_parallel": True}, None),
        ({"tensor_parallel": 1}, None),
        (
            {"device": "cpu"},
            "a mixture of experts is not trained with --tensor_parallel 8 alone: use --pipeline_parallel",
        ),
    ],
)
def test_a_mixture_of_experts_wants_its_sequences_divided_too(changes: dict, said: str | None):
    shape, options = big()
    mixture = replace(shape, model_type="mixtral", num_experts=8, experts_per_token=2)

    assert next(mistakes(mixture, replace(options, **changes), 256, 8), None) == said


def test_more_parallelism_never_needs_more_memory_and_the_parts_are_the_known_ones():
    shape, options = big()
    published = memory_estimate(shape, options, 256)
    halves = memory_estimate(shape, replace(options, pipeline_parallel=1), 256)

    # 69 billion parameters over TP 8 x PP 2: 2 bytes, 4 bytes, and 12 over DP 16
    assert published.weights == pytest.approx(2 * 68.98e9 / 16, rel=0.01)
    assert published.gradients == 2 * published.weights
    assert published.optimizer == pytest.approx(12 * 68.98e9 / 256, rel=0.01)
    assert halves.total > published.total


def test_a_recipe_with_a_wrong_key_is_told_with_file_and_key(workdir):
    (workdir / "mine.yaml").write_text("description: x\nmodel: words\nsteps: 3\nlearnin_rate: 1\n")

    with pytest.raises(UserError, match=r"mine\.yaml: unknown key 'learnin_rate'; did you mean 'learning_rate'\?"):
        load_recipe("mine.yaml")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'; the trainer knows 'llama', 'mistral', 'mixtral'"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias is True"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"model_type": "llama"}, "no 'num_attention_heads'"),
    ],
)
def test_a_model_that_would_be_computed_wrongly_is_refused(config: dict, said: str):
    with pytest.raises(UserError, match="here: ") as refusal:
        shape_of(config, "here")

    assert said in str(refusal.value)
