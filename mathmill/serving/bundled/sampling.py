"""The next token out of logits: greedy, or drawn with temperature, top-k, top-p and min-p."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
GREEDY_BELOW = 1e-5
"""A temperature below this is greedy, as in vLLM."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one sample is drawn, under the names of the completions API."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many of the likeliest tokens to report with each token; None: report nothing."""
    ignore_eos: bool = False


def sample_generator(seed: int | None, index: int) -> np.random.Generator:
    """The random numbers of sample `index` of a request: of nothing but seed and index. None draws a seed."""
    entropy = None if seed is None else [seed % 2**64, index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def choose(logits: Array, samplings: list[Sampling], generators: list[np.random.Generator]) -> list[int]:
    """A token for every row of logits [rows, vocab]. A row's token depends on that row and its generator alone."""
    tokens = logits.argmax(axis=1)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature >= GREEDY_BELOW]
    if warm:
        temperatures = np.array([[samplings[row].temperature] for row in warm], np.float32)
        likeliest = logits[warm, tokens[warm]][:, None]
        weights = np.exp((logits[warm] - likeliest) / temperatures)
        for place, row in enumerate(warm):
            _keep_likeliest(weights[place], samplings[row])
        sums = np.cumsum(weights, axis=1, dtype=np.float64)
        marks = np.array([[generators[row].random()] for row in warm]) * sums[:, -1:]
        drawn = (sums <= marks).sum(axis=1)
        # A mark may round up to the very sum, and no token lies beyond that.
        tokens[warm] = np.where(drawn < logits.shape[1], drawn, tokens[warm])
    return tokens.tolist()


def _keep_likeliest(weights: Array, sampling: Sampling) -> None:
    """Zero the weights [vocab] that top_k, then top_p, then min_p leave out; the likeliest token always stays."""
    if 0 < sampling.top_k < len(weights) or sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        kept = sampling.top_k if sampling.top_k > 0 else len(weights)
        if sampling.top_p < 1:
            sums = np.cumsum(weights[order[:kept]], dtype=np.float64)
            kept = min(kept, int((sums < sampling.top_p * sums[-1]).sum()) + 1)
        weights[order[kept:]] = 0
    if sampling.min_p > 0:
        weights[weights < sampling.min_p * weights.max()] = 0


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of a token, and those of the likeliest tokens in its place, before temperature."""

    logprob: float
    top: list[tuple[int, float]]


def token_logprob(logits: Array, token: int, num_top: int) -> TokenLogprob:
    """Read one position's logits [vocab]."""
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    top = np.argsort(-logprobs, kind="stable")[:num_top].tolist()
    return TokenLogprob(float(logprobs[token]), [(index, float(logprobs[index])) for index in top])
