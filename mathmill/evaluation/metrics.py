"""pass@k, avg@k and majority@k at every k, for all problems at once.

Rows are problems, columns are samples in the order of their index; k = 1, 2, … stands at column k - 1 of every result.
"""

import numpy as np
from numpy.typing import NDArray

Booleans = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Places = NDArray[np.int32]
NO_ANSWER = -1


def pass_table(num_samples: int) -> Numbers:
    """pass@k of a problem with c correct samples of n, without bias: 1 - C(n-c, k) / C(n, k), at [c, k-1].

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    correct = np.arange(num_samples + 1)[:, None]
    drawn = np.arange(num_samples)[None, :]
    missed = np.maximum(num_samples - correct - drawn, 0) / (num_samples - drawn)
    return 1.0 - np.cumprod(missed, axis=1)


def pass_at_k(is_correct: Booleans) -> Numbers:
    """Chance that k samples of a problem, drawn without replacement, hold a correct one: problems x samples."""
    return pass_table(is_correct.shape[1])[is_correct.sum(axis=1)]


def average_at_k(is_correct: Booleans) -> Numbers:
    """Share of correct samples among a problem's first k: problems x samples."""
    return np.cumsum(is_correct, axis=1) / np.arange(1, is_correct.shape[1] + 1)


def leaders(classes: Places) -> Places:
    """Place of the first member of the class with most votes among a problem's first k samples; NO_ANSWER where none has one.

    `classes`: for each sample the number of its class of equal answers within its problem, or NO_ANSWER, which has no
    vote. A tie goes to the class that was seen first.
    """
    num_problems, num_samples = classes.shape
    rows = np.arange(num_problems)
    votes = np.zeros((num_problems, classes.max(initial=0) + 1), np.int32)
    first = np.full(votes.shape, num_samples, np.int32)
    leader = np.full(num_problems, NO_ANSWER, np.int32)
    most = np.zeros(num_problems, np.int32)
    seen = np.full(num_problems, num_samples, np.int32)
    found = np.empty((num_samples, num_problems), np.int32)
    for place in range(num_samples):
        chosen = classes[:, place]
        voters = rows[chosen >= 0]
        chosen = chosen[voters]
        votes[voters, chosen] += 1
        first[voters, chosen] = np.minimum(first[voters, chosen], place)
        counted, begun = votes[voters, chosen], first[voters, chosen]
        # only the class that was just voted for can have overtaken the leader
        ahead = (counted > most[voters]) | ((counted == most[voters]) & (begun < seen[voters]))
        winners = voters[ahead]
        leader[winners], most[winners], seen[winners] = chosen[ahead], counted[ahead], begun[ahead]
        found[place] = np.where(leader >= 0, seen, NO_ANSWER)
    return np.ascontiguousarray(found.T)


def majority_at_k(classes: Places, is_correct: Booleans) -> Booleans:
    """Whether the majority's answer among the first k samples is correct: problems x samples.

    The majority's answer is the first member of the class with most votes, so its verdict is that sample's.
    """
    return taken(is_correct, leaders(classes))


def taken(is_correct: Booleans, places: Places) -> Booleans:
    """The verdicts of the samples at these places of each problem; NO_ANSWER is not correct."""
    return np.take_along_axis(is_correct, np.maximum(places, 0), axis=1) & (places >= 0)


def expected_majority_at_k(classes: Places, is_correct: Booleans, orders: Places) -> Numbers:
    """majority@k, averaged over orders of the samples (orders x samples): a curve without the chance of one order."""
    total = np.zeros(classes.shape)
    for order in orders:
        total += majority_at_k(classes[:, order], is_correct[:, order])
    return total / len(orders)


def random_orders(num_samples: int, count: int, seed: int = 0) -> Places:
    """Orders of samples for `expected_majority_at_k`, always the same ones: count x samples."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(num_samples) for _ in range(count)]).astype(np.int32)


def class_numbers(members: list[list[tuple[int, ...]]], num_samples: int) -> Places:
    """Classes of equal answers, each given by the places of its members, as the numbers that `leaders` takes."""
    numbers = np.full((len(members), num_samples), NO_ANSWER, np.int32)
    for row, classes in enumerate(members):
        for number, places in enumerate(classes):
            numbers[row, list(places)] = number
    return numbers
