"""Text out of tokens: equal to decoding them all at once, cut where str.find says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import TAGS, make_tokenizer

from mathmill.serving.bundled.text import TextStream

TOKENIZER = make_tokenizer()
PROMPT = TOKENIZER.encode("Tom has 17 apples.").ids
tokens = st.lists(st.integers(2, TOKENIZER.get_vocab_size() - 1), max_size=40)
texts = st.text(max_size=30).map(lambda text: TOKENIZER.encode(text).ids)
few_letters = st.text("ab ", max_size=40).map(lambda text: TOKENIZER.encode(text).ids)


def whole_text(ids):
    """What the tokens add to the prompt's text when all are decoded at once."""
    return TOKENIZER.decode(PROMPT + ids).removeprefix(TOKENIZER.decode(PROMPT))


def run(ids, *stop):
    """Push tokens until a stop; the stream, and the pieces that were taken after each."""
    stream, pieces = TextStream(TOKENIZER, PROMPT, stop), []
    for token in ids:
        stopped = stream.push(token)
        pieces.append(stream.take())
        if stopped:
            return stream, pieces
    stream.finish()
    return stream, [*pieces, stream.take()]


@given(tokens | texts)
@settings(max_examples=200, deadline=None)
def test_without_a_stop_the_text_is_that_of_all_tokens_decoded_at_once(ids):
    stream, pieces = run(ids)
    assert stream.text == whole_text(ids) == "".join(pieces)


@given(few_letters | texts, st.text("ab ", min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_text_is_cut_where_find_finds_the_stop_string_in_the_whole(ids, stop):
    stream, pieces = run(ids, stop)
    at = whole_text(ids).find(stop)
    assert stream.text == (whole_text(ids) if at < 0 else whole_text(ids)[:at])
    assert stream.stop_reason == (None if at < 0 else stop)
    assert "".join(pieces) == stream.text


@given(few_letters, st.lists(st.text("ab ", min_size=1, max_size=4), min_size=2, max_size=3))
@settings(max_examples=200, deadline=None)
def test_with_several_stop_strings_none_is_left_in_what_was_given_out(ids, stops):
    stream, pieces = run(ids, *stops)
    assert "".join(pieces) == stream.text
    assert whole_text(ids).startswith(stream.text)
    assert not any(stop in stream.text for stop in stops)
    assert (stream.stop_reason is not None) == any(stop in whole_text(ids) for stop in stops)


@pytest.mark.parametrize("tag", TAGS)
def test_a_stop_string_that_is_one_token_and_one_that_straddles_tokens_are_both_removed(tag):
    ids = TOKENIZER.encode(f"a = 1{tag} b").ids
    assert TOKENIZER.token_to_id(tag) in ids
    assert run(ids, tag)[0].text == "a = 1"
    assert run(ids, f"1{tag} b"[1:-1])[0].text == "a = 1"
    assert run(ids, f"= 1{tag}")[0].text == "a "


def test_a_character_of_several_tokens_comes_out_whole():
    ids = TOKENIZER.encode("x 🦙 y").ids
    assert len(ids) > 5
    stream, pieces = run(ids)
    assert stream.text == "x 🦙 y"
    assert not any("\ufffd" in piece for piece in pieces)
