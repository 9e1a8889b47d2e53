"""Prompts against the model's context, by its own tokenizer."""

import json
import shutil
from pathlib import Path

import pytest

from mathmill.errors import UserError
from mathmill.generation.lengths import lengths_of
from mathmill.generation.solve import LEAST_ROOM

WORDS = Path(__file__).parents[2] / "models" / "words"


def test_prompts_that_fit_by_their_bytes_are_not_tokenized():
    lengths = lengths_of(["short", "a little longer"], str(WORDS), 2048)
    assert (lengths.too_long, lengths.context_length) == ([], 2048)


def test_only_prompts_whose_tokens_do_not_fit_are_too_long():
    from tokenizers import Tokenizer

    text = "There are seven baskets with eight apples each. " * 40
    tokens = len(Tokenizer.from_file(str(WORDS / "tokenizer.json")).encode(text).ids)
    assert len(text) > tokens + LEAST_ROOM
    fits = lengths_of(["x", text], str(WORDS), tokens + LEAST_ROOM)
    assert (fits.longest, fits.too_long) == (tokens, [])
    assert lengths_of(["x", text], str(WORDS), tokens + LEAST_ROOM - 1).too_long == [1]


def test_without_a_tokenizer_or_a_context_nothing_is_said(tmp_path):
    assert lengths_of(["x"], "", 2048) is None
    assert lengths_of(["x"], str(tmp_path), 2048) is None
    shutil.copy(WORDS / "tokenizer.json", tmp_path)
    assert lengths_of(["x"], str(tmp_path), None) is None
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 99}))
    assert lengths_of(["x"], str(tmp_path), None).context_length == 99


def test_a_broken_tokenizer_is_told_with_its_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer"):
        lengths_of(["x" * 500], str(tmp_path), 64)
