"""Choosing a token: the right distribution, and nothing but a row and its generator matters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathmill.serving.bundled.sampling import Sampling, choose, sample_generator, token_logprob

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draws(count, **options):
    """How often each token is drawn."""
    generators = [sample_generator(7, index) for index in range(count)]
    tokens = choose(np.tile(LOGITS, (count, 1)), [Sampling(**options)] * count, generators)
    return np.bincount(tokens, minlength=len(LOGITS)) / count


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"min_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_that_the_options_leave(options, expected):
    assert np.abs(draws(2_000, **options) - expected).max() < 0.045


@given(st.integers(1, 12), st.integers(0, 2**64), st.data())
@settings(max_examples=50, deadline=None)
def test_a_rows_token_does_not_depend_on_the_other_rows(rows, seed, data):
    logits = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((rows, 50)).astype(np.float32) * 3
    kinds = [{}, {"temperature": 0.0}, {"temperature": 0.3, "top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}]
    samplings = [Sampling(**kinds[row % len(kinds)]) for row in range(rows)]
    together = choose(logits, samplings, [sample_generator(seed, row) for row in range(rows)])
    alone = [
        choose(logits[row : row + 1], samplings[row : row + 1], [sample_generator(seed, row)])[0] for row in range(rows)
    ]
    assert together == alone


def test_generators_differ_by_seed_and_by_index_and_without_a_seed_always():
    def number(seed, index):
        return sample_generator(seed, index).random()

    assert number(1, 0) == number(1, 0)
    assert len({number(1, 0), number(1, 1), number(2, 0), number(-1, 0), number(None, 0), number(None, 0)}) == 6


def test_log_probabilities_sum_to_one_and_come_likeliest_first():
    found = token_logprob(LOGITS, 2, 4)
    assert found.logprob == pytest.approx(np.log(0.2))
    assert [token for token, _ in found.top] == [1, 3, 2, 0]
    assert sum(np.exp(value) for _, value in found.top) == pytest.approx(1)
