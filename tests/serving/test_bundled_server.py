"""The bundled server as a process of its own, over real HTTP."""

import itertools
import json
import math
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_llama import make_tokenizer

PROMPTS = [f"{name} has {number} apples" for name in ("Tom", "Ann", "東京", "x = ") for number in (2, 17, 305)]


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_health_and_models_answer(server):
    assert server.ask("GET", "/health")[0] == 200
    card = json.loads(server.get("/v1/models"))["data"][0]
    assert (card["id"], card["max_model_len"]) == (server.name, 4096)


def test_greedy_text_is_the_same_every_time_and_is_counted(server):
    answer = server.complete("Tom has", temperature=0, max_tokens=12, ignore_eos=True)
    assert server.text("Tom has", temperature=0, max_tokens=12, ignore_eos=True) == answer["choices"][0]["text"]
    assert answer["choices"][0]["finish_reason"] == "length"
    prompt_tokens = len(make_tokenizer().encode("Tom has").ids)
    assert answer["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 12,
        "total_tokens": prompt_tokens + 12,
    }


def test_a_prompt_may_be_text_texts_tokens_or_lists_of_tokens(server):
    tokens = make_tokenizer().encode("Tom has").ids
    options = {"temperature": 0, "max_tokens": 8}
    expected = server.text("Tom has", **options)
    assert server.text(tokens, **options) == expected
    for prompt in (["Tom has", "Ann"], [tokens, make_tokenizer().encode("Ann").ids]):
        choices = server.complete(prompt, **options)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        assert [choice["text"] for choice in choices] == [expected, server.text("Ann", **options)]


def test_a_seed_decides_the_text_and_a_samples_index_goes_into_it(server):
    first, second = (server.complete("Tom has", seed=5, n=4, max_tokens=20)["choices"] for _ in range(2))
    assert [choice["text"] for choice in first] == [choice["text"] for choice in second]
    assert len({choice["text"] for choice in first}) == 4
    assert server.text("Tom has", seed=5, max_tokens=20) == first[0]["text"]
    assert server.text("Tom has", seed=6, max_tokens=20) != first[0]["text"]
    assert server.text("Tom has", max_tokens=20) != server.text("Tom has", max_tokens=20)


@pytest.mark.slow
def test_a_text_is_the_same_alone_and_among_32_others(server):
    def ask(place):
        prompt = PROMPTS[place % len(PROMPTS)]
        return server.text(prompt, seed=place, max_tokens=10 + 3 * place, temperature=(0.7, 1.0, 1.3)[place % 3])

    alone = [ask(place) for place in range(33)]
    with ThreadPoolExecutor(33) as pool:
        assert list(pool.map(ask, range(33))) == alone


@pytest.mark.slow
def test_texts_are_the_same_alone_and_among_others_over_many_prompts(server):
    def ask(place):
        return server.text(f"{place} {PROMPTS[place % len(PROMPTS)]}", seed=place, max_tokens=20 + place % 80)

    alone = [ask(place) for place in range(150)]
    with ThreadPoolExecutor(48) as pool:
        assert list(pool.map(ask, range(150))) == alone


def test_a_stop_string_ends_the_text_and_is_removed_wherever_the_tokens_break(server):
    options = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    whole = server.text("Tom has", **options)
    for start, length in itertools.product((0, 7, 15), (1, 3, 9)):
        stop = whole[start : start + length]
        choice = server.complete("Tom has", stop=[stop, "never to be seen"], **options)["choices"][0]
        assert choice["text"] == whole[: whole.find(stop)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert server.text("Tom has", stop=whole[7:10], **options) == whole[: whole.find(whole[7:10])]


def test_the_end_of_text_token_ends_it_without_a_stop_reason(server):
    choices = server.complete("Tom has", seed=1, n=40, max_tokens=120, temperature=100, logprobs=0)["choices"]
    ended = [choice for choice in choices if choice["finish_reason"] == "stop"]
    assert ended
    for choice in ended:
        assert choice["stop_reason"] is None
        assert choice["logprobs"]["tokens"][-1] == "<|end|>"
        assert "<|end|>" not in choice["text"]


def test_a_stream_carries_the_same_texts_in_pieces(server):
    options = {"seed": 3, "max_tokens": 40, "n": 3, "stop": ["e", "qq"], "ignore_eos": True}
    expected = server.complete("Tom has", **options)
    chunks = server.stream("Tom has", stream_options={"include_usage": True}, **options)
    assert chunks[-1]["usage"] == expected["usage"]
    for choice in expected["choices"]:
        pieces = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + [choice["finish_reason"]]
        assert pieces[-1]["stop_reason"] == choice["stop_reason"]


def test_log_probabilities_have_openais_shape(server):
    options = {"temperature": 0, "max_tokens": 10, "logprobs": 3, "ignore_eos": True}
    found = server.complete("Tom has", **options)["choices"][0]["logprobs"]
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(column) for column in found.values()} == {10}
    for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert value == pytest.approx(max(top.values())) == pytest.approx(top[token])
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6
    pieces = [chunk["choices"][0]["logprobs"] for chunk in server.stream("Tom has", **options)]
    for column in ("tokens", "text_offset"):
        assert [value for piece in pieces for value in piece[column]] == found[column]


@pytest.mark.parametrize(
    ("fields", "status", "param", "said"),
    [
        ({"frequency": 1}, 400, "frequency", "unknown field 'frequency'"),
        ({"echo": True}, 400, "echo", "unknown field 'echo'"),
        ({"model": "other"}, 404, "model", "'other' does not exist"),
        ({"model": None}, 400, "model", "model is missing"),
        ({"max_tokens": 0}, 400, "max_tokens", "at least 1"),
        ({"max_tokens": 5000}, 400, "max_tokens", "1 tokens and max_tokens is 5000: together 5001"),
        ({"prompt": [5] * 4096}, 400, "prompt", "has 4096 tokens .* context length is 4096"),
        ({"prompt": [5, 10**6]}, 400, "prompt", "outside 0 to"),
        ({"prompt": []}, 400, "prompt", "prompt is missing"),
        ({"prompt": ""}, 400, "prompt", "empty"),
        ({"prompt": ["a", 1]}, 400, "prompt", "neither a string"),
        ({"prompt": [[1]] * 2000, "n": 1024}, 400, "prompt", "more than 1024 samples"),
        ({"prompt": ["a"] * 3, "n": 512}, 400, "prompt", "more than 1024 samples"),
        ({"prompt": "a \ud800 b"}, 400, "prompt", "no character"),
        ({"temperature": -1}, 400, "temperature", "from 0 to 100"),
        ({"temperature": "hot"}, 400, "temperature", "not a number"),
        ({"top_p": 0}, 400, "top_p", "above 0"),
        ({"n": 0}, 400, "n", "from 1 to"),
        ({"n": 1.5}, 400, "n", "not an integer"),
        ({"seed": True}, 400, "seed", "not an integer"),
        ({"stop": [""]}, 400, "stop", "non-empty"),
        ({"stop": 3}, 400, "stop", "non-empty"),
        ({"logprobs": 21}, 400, "logprobs", "from 0 to 20"),
        ({"stream": 1}, 400, "stream", "neither true nor false"),
        ({"stream_options": {"x": 1}}, 400, "stream_options", "include_usage"),
    ],
)
def test_a_wrong_request_is_refused_by_its_field(server, fields, status, param, said):
    refusal = server.refusal(**fields)
    assert (refusal["status"], refusal["param"]) == (status, param)
    assert re.search(said, refusal["message"])


def test_a_body_that_is_no_json_object_is_refused(server):
    assert server.ask("POST", "/v1/completions", [1])[0] == 400
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n{a:")
        assert b" 400 " in raw.makefile("rb").readline()


def test_null_means_the_default(server):
    expected = server.text("Tom has", temperature=0)
    assert server.text("Tom has", temperature=0, top_p=None, stop=None, seed=None, logprobs=None) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slots_and_too_many_samples_wait(server, stream):
    body = {"model": server.name, "prompt": "Tom", "max_tokens": 4000, "n": 60, "ignore_eos": True, "stream": stream}
    text = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        wait_until(lambda: server.metric("requests_running") == 40)
        assert server.metric("requests_waiting") == 20
    wait_until(lambda: server.metric("requests_running") == 0)
    assert server.metric("requests_waiting") == 0
    assert server.text("Tom has", max_tokens=2) is not None


def test_metrics_count_tokens(server):
    before = server.metric("generated_tokens_total"), server.metric("prompt_tokens_total")
    answer = server.complete("Tom has", max_tokens=7, n=2, ignore_eos=True)
    after = server.metric("generated_tokens_total"), server.metric("prompt_tokens_total")
    assert (after[0] - before[0], after[1] - before[1]) == (14, 2 * answer["usage"]["prompt_tokens"])


def test_health_answers_while_a_long_prompt_and_many_samples_are_computed(server):
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(server.complete, [5] * 1500, max_tokens=10, n=10)
        slowest = 0.0
        while not busy.done():
            begin = time.monotonic()
            assert server.ask("GET", "/health")[0] == 200
            slowest = max(slowest, time.monotonic() - begin)
            time.sleep(0.01)
        assert slowest < 2.0
