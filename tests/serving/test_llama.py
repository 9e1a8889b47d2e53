"""The numpy model: equal to transformers', and equal for a text whatever is decoded with it."""

import json

import numpy as np
import pytest
from tiny_llama import make_model

from mathmill.errors import UserError
from mathmill.serving.bundled.llama import SPAN, Cache, Llama, even_rows, read_config

SHAPES = {
    "grouped queries, tied": {},
    "bfloat16 in shards": {"dtype": "bfloat16", "shards": 3},
    "float16, rope as transformers 5 writes it": {"dtype": "float16", "rope_parameters": True, "rope_theta": 500000.0},
    "own head, no groups": {"tie_word_embeddings": False, "num_key_value_heads": 6},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
}


def some_tokens(model, count, seed=0):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = make_model(tmp_path, **SHAPES[shape])
    model = Llama(folder)
    tokens = some_tokens(model, 300)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = theirs(torch.tensor([tokens])).logits[0].detach().numpy()
    tolerance = 1e-5 * np.abs(expected).max()
    assert np.abs(model.logits(tokens) - expected).max() < tolerance
    cache = Cache(model.config, 2, model.context_length)
    cache.put(0, model.prefill(tokens[:40]))
    stepwise = [model.decode(np.array([token]), cache)[0] for token in tokens[40:]]
    assert np.abs(np.array(stepwise) - expected[40:]).max() < tolerance


def test_decoding_step_by_step_gives_the_logits_of_the_whole_text(tmp_path):
    model = Llama(make_model(tmp_path))
    tokens = some_tokens(model, 5 * SPAN)
    expected = model.logits(tokens)
    cache = Cache(model.config, 3, model.context_length)
    cache.put(0, model.prefill(tokens[:3]))
    cache.put(1, model.prefill(tokens[: 4 * SPAN]))
    for step in range(SPAN):
        pair = np.array([tokens[3 + step], tokens[4 * SPAN + step]])
        short, long = model.decode(pair, cache)
        assert np.allclose(short, expected[3 + step], atol=1e-3)
        assert np.allclose(long, expected[4 * SPAN + step], atol=1e-3)


def test_a_texts_logits_are_bit_for_bit_the_same_alone_and_among_others(tmp_path):
    model = Llama(make_model(tmp_path))
    lengths = np.random.default_rng(1).integers(1, 200, 21)
    prompts = [some_tokens(model, int(length), seed) for seed, length in enumerate(lengths)]
    steps = np.random.default_rng(2).integers(0, model.config.vocab_size, (4, len(prompts)))
    together = Cache(model.config, len(prompts), model.context_length)
    for slot, prompt in enumerate(prompts):
        together.put(slot, model.prefill(prompt))
    among_others = [model.decode(tokens, together) for tokens in steps]
    for slot, prompt in enumerate(prompts):
        alone = Cache(model.config, 1, model.context_length)
        alone.put(0, model.prefill(prompt))
        for tokens, logits in zip(steps, among_others, strict=True):
            assert np.array_equal(model.decode(tokens[slot : slot + 1], alone)[0], logits[slot])


def test_the_height_of_products_is_one_where_a_rows_place_does_not_matter():
    weight = np.random.default_rng(0).standard_normal((384, 192), np.float32)
    rows = even_rows([weight])
    states = np.random.default_rng(1).standard_normal((rows, 192), np.float32)
    order = np.random.default_rng(2).permutation(rows)
    assert np.array_equal((weight @ states.T)[:, order], weight @ states[order].T)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "mixtral"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("quantization_config", {"quant_method": "fp8"}),
    ],
)
def test_a_shape_that_would_be_computed_wrongly_is_refused(field, value, tmp_path):
    path = make_model(tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=r"config\.json: .*another server kind"):
        read_config(tmp_path)


def test_a_missing_tensor_a_missing_file_and_a_missing_folder_are_named(tmp_path):
    folder = make_model(tmp_path / "model", num_hidden_layers=2)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"no tensor 'model.layers.2.input_layernorm.weight'"):
        Llama(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        Llama(folder)
    with pytest.raises(UserError, match=r"no config\.json"):
        Llama(tmp_path / "nowhere")


def test_end_tokens_come_from_the_generation_config_first(tmp_path):
    make_model(tmp_path)
    assert read_config(tmp_path).end_tokens == {0}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert read_config(tmp_path).end_tokens == {3, 5}
