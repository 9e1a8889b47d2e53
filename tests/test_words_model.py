"""The bundled model as a folder: small, Llama-shaped, with a tokenizer that loses nothing. Needs no torch."""

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from mathmill.paths import shipped
from mathmill.prompts import load_prompt, prompt_text
from mathmill.words import generate

FOLDER = shipped("models") / "words"
TAGS = ("<llm-code>", "</llm-code>", "<llm-code-output>", "</llm-code-output>")
CONFIG = json.loads((FOLDER / "config.json").read_text())
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def expected_shapes() -> dict[str, list[int]]:
    """Every tensor that transformers' LlamaForCausalLM has with this configuration, its tied head aside."""
    hidden, inner, size = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * size, CONFIG["num_key_value_heads"] * size
    of_a_layer = {
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden],
        "mlp.down_proj": [hidden, inner],
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }
    shapes = {"model.embed_tokens.weight": [CONFIG["vocab_size"], hidden], "model.norm.weight": [hidden]}
    for layer in range(CONFIG["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_a_layer.items()}
    return shapes


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def test_the_folder_is_at_most_8_mb():
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) <= 8 * 2**20


def test_the_weights_are_a_llama_of_about_two_million_parameters_in_float16():
    assert CONFIG["architectures"] == ["LlamaForCausalLM"] and CONFIG["tie_word_embeddings"]
    assert CONFIG["max_position_embeddings"] == 2048
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        kinds = {weights.get_slice(name).get_dtype() for name in shapes}
    assert shapes == expected_shapes()
    assert kinds == {"F16"}
    assert 1.5e6 < sum(math.prod(shape) for shape in shapes.values()) < 2.5e6


def test_no_weight_is_infinite_or_not_a_number():
    import numpy as np

    with safe_open(FOLDER / "model.safetensors", framework="numpy") as weights:
        assert all(np.isfinite(weights.get_tensor(name)).all() for name in weights.keys())  # noqa: SIM118


def test_every_token_has_a_row_and_every_row_a_token():
    assert TOKENIZER.get_vocab_size() == CONFIG["vocab_size"]
    assert TOKENIZER.token_to_id("<|endoftext|>") == CONFIG["eos_token_id"]


@settings(max_examples=300, deadline=None)
@given(st.text())
@example(r"\boxed{84} <llm-code>\n</llm-code-output><|endoftext|>  x = 3_000 ½ ௧² 中文 🧮" + "\t\r\n\x00 \u2028")
def test_any_text_comes_back_exactly(text):
    assert TOKENIZER.decode(ids_of(text), skip_special_tokens=False) == text


def test_numbers_below_a_hundred_are_one_token_and_longer_ones_are_cut_in_pairs():
    vocabulary = TOKENIZER.get_vocab()
    assert all(str(number) in vocabulary and f"{number:02}" in vocabulary for number in range(100))
    assert TOKENIZER.encode("1234567").tokens == ["12", "34", "56", "7"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_one_token_and_is_seen_in_decoded_text(tag):
    (token,) = ids_of(tag)
    assert TOKENIZER.decode([token], skip_special_tokens=True) == tag


def test_the_end_of_text_is_one_token_and_is_not_seen_in_decoded_text():
    assert TOKENIZER.decode(ids_of("5.<|endoftext|>"), skip_special_tokens=True) == "5."


def test_a_solution_sent_back_with_its_output_has_the_tokens_that_were_trained():
    for problem in generate("test", 60, seed=9):
        solution = str(problem.reference_solution)
        for cut in ("</llm-code>", "</llm-code-output>\n"):
            before, after = solution.split(cut)
            assert ids_of(before + cut) + ids_of(after) == ids_of(solution)
        prompt = prompt_text(load_prompt("code_sft"), problem)
        assert ids_of(prompt) + ids_of(solution) == ids_of(prompt + solution)
