"""Time and memory of every metric at every k with its intervals, beside plain Python: python benchmarks/metrics.py

5,000 problems x 256 samples: pass@k, avg@k and majority@k for k = 1 … 256, and 10,000 bootstrap draws of all of them. The
plain loop does the same for 300 problems and, since it would take an hour, only 100 draws; its time for the draws is
multiplied by 100. Both times are told a problem.
"""

import math
import random
import resource
import time
from collections import Counter

import numpy as np

from mathmill.evaluation.intervals import DRAWS, bootstrap
from mathmill.evaluation.metrics import average_at_k, majority_at_k, pass_at_k

PROBLEMS, SAMPLES, PLAIN_PROBLEMS, PLAIN_DRAWS = 5000, 256, 300, 100


def made_up() -> tuple[np.ndarray, np.ndarray]:
    """Classes (0 is the right answer, -1 none) and verdicts; the share of right samples is drawn for every problem."""
    generator = np.random.default_rng(1)
    share = generator.random((PROBLEMS, 1))
    wrong = np.minimum(1 + generator.pareto(1.0, (PROBLEMS, SAMPLES)), 60).astype(np.int32)
    classes = np.where(generator.random((PROBLEMS, SAMPLES)) < share, 0, wrong).astype(np.int32)
    classes[generator.random((PROBLEMS, SAMPLES)) < 0.03] = -1
    return classes, classes == 0


def vectorised(classes: np.ndarray, verdicts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([pass_at_k(verdicts), average_at_k(verdicts), majority_at_k(classes, verdicts)], axis=1)
    return values.mean(axis=0), bootstrap(values)


def plain_metrics(classes: list[int], verdicts: list[bool]) -> list[float]:
    n, right = len(verdicts), sum(verdicts)
    passed = [1 - math.comb(n - right, k) / math.comb(n, k) for k in range(1, n + 1)]
    average = [sum(verdicts[:k]) / k for k in range(1, n + 1)]
    majority = []
    for k in range(1, n + 1):
        votes = Counter(each for each in classes[:k] if each >= 0)
        majority.append(float(bool(votes) and verdicts[classes.index(votes.most_common(1)[0][0])]))
    return passed + average + majority


def plain_draws(values: list[list[float]], draws: int) -> list[list[float]]:
    chance, columns = random.Random(1), list(zip(*values, strict=True))
    means = []
    for _ in range(draws):
        chosen = chance.choices(range(len(values)), k=len(values))
        means.append([sum(column[place] for place in chosen) / len(values) for column in columns])
    return means


def main() -> None:
    classes, verdicts = made_up()
    began = time.perf_counter()
    means, ends = vectorised(classes, verdicts)
    took_s = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    few_classes, few_verdicts = classes[:PLAIN_PROBLEMS].tolist(), verdicts[:PLAIN_PROBLEMS].tolist()
    began = time.perf_counter()
    values = [plain_metrics(*each) for each in zip(few_classes, few_verdicts, strict=True)]
    metrics_s = time.perf_counter() - began
    began = time.perf_counter()
    plain_draws(values, PLAIN_DRAWS)
    draws_s = (time.perf_counter() - began) * DRAWS / PLAIN_DRAWS

    few = vectorised(classes[:PLAIN_PROBLEMS], verdicts[:PLAIN_PROBLEMS])[0]
    assert np.allclose(np.mean(values, axis=0), few)
    ours, plain = took_s / PROBLEMS, (metrics_s + draws_s) / PLAIN_PROBLEMS
    print(f"{PROBLEMS:,} problems x {SAMPLES} samples, 3 metrics at every k, {DRAWS:,} draws: {took_s:.2f} s")
    print(f"  a problem: {ours * 1e3:.3f} ms; plain Python: {plain * 1e3:,.1f} ms; {plain / ours:,.0f} times faster")
    print(f"  plain Python: {metrics_s:.1f} s for the metrics of {PLAIN_PROBLEMS}, {draws_s:,.0f} s for their draws")
    began = time.perf_counter()
    pass_at_k(verdicts), average_at_k(verdicts), majority_at_k(classes, verdicts)
    alone_s = (time.perf_counter() - began) / PROBLEMS
    plain_s = metrics_s / PLAIN_PROBLEMS
    print(f"  the metrics alone, a problem: {alone_s * 1e6:.0f} µs; plain Python: {plain_s * 1e6:,.0f} µs; ", end="")
    print(f"{plain_s / alone_s:,.0f} times faster")
    print(f"  peak of the whole process before the plain loop: {peak_mb:,.0f} MiB")
    print(f"  majority@{SAMPLES}: {means[-1]:.3f} [{ends[0, -1]:.3f}, {ends[1, -1]:.3f}]")


if __name__ == "__main__":
    main()
