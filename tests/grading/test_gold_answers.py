"""The gold answers of benchmarks: each equals itself and its respellings, and different ones are not judged equal."""

import collections
import gzip
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
from functools import lru_cache
from pathlib import Path

import pytest
from sympy import Eq, Symbol

from mathmill.grading import GradingPool, grade, symbolic
from mathmill.grading.compare import read
from mathmill.grading.parts import bracketed, items
from mathmill.grading.pool import grade_all

BENCHMARKS = ("math/train", "math/test", "olympiadbench/test", "amc23/test", "aime24/test", "omni-math-rule/test",
              "minerva-math/test")  # fmt: skip
ACROSS = 50_000
PORTION = 200
"""Pairs that a process judges at a time."""
RESPELLINGS = {
    "as a display": lambda answer: f"$${answer}$$",
    "in a box": lambda answer: rf"\boxed{{{answer}}}" if answer.count("{") == answer.count("}") else answer,
    "with dfrac": lambda answer: answer.replace(r"\frac", r"\dfrac"),
    "with brackets that grow": lambda answer: re.sub(
        r"(?<!\\left)(?<![\\a-z])\(([^()]*)\)", r"\\left(\1\\right)", answer
    ),
    "without spaces after commas": lambda answer: answer.replace(", ", ","),
    "with spaces around signs": lambda answer: re.sub(r"(?<=[0-9a-z}]) ?([+=]) ?(?=[0-9a-z\\])", r" \1 ", answer),
    "with thin spaces": lambda answer: answer.replace(", ", r",\, "),
    "with a full stop": lambda answer: answer if answer.endswith((".", ".$")) else f"{answer}.",
    "with a head": lambda answer: answer if re.search(r"[=<>:,]|\\in|[a-zA-Z]{3}", answer) else f"x = {answer}",
}


def gold_answers(dev_data: Path) -> list[str]:
    """Every gold answer, one of each spelling."""
    found: dict[str, str] = {}
    for name in BENCHMARKS:
        with gzip.open(dev_data / f"{name}.jsonl.gz", "rt") as lines:
            for line in lines:
                answer = json.loads(line)["expected_answer"]
                for one in [answer] if isinstance(answer, str) else answer:
                    found.setdefault(read(one).key, one)
    return list(found.values())


@pytest.fixture(scope="module")
def pool():
    pool = GradingPool(workers=2, timeout_s=60)
    yield pool
    pool.close()


@pytest.mark.slow
def test_every_gold_answer_equals_itself_and_its_respellings(dev_data, pool):
    gold = gold_answers(dev_data)
    plain = [answer for answer in gold if not read(answer).is_costly]  # the others are compared as text
    named = [(name, respell(answer), answer) for answer in plain for name, respell in RESPELLINGS.items()]
    verdicts = grade_all([(respelled, answer) for _, respelled, answer in named], pool)
    itself = grade_all([(answer, answer) for answer in gold], pool)

    assert all(verdict.is_correct for verdict in itself)
    refused = [(*row, verdict.rule) for row, verdict in zip(named, verdicts, strict=True) if not verdict.is_correct]
    print(f"{len(gold):,} gold answers, {len(named):,} respellings: {len(refused)} refused", *refused, sep="\n")
    assert refused == []


def size_of(answer: str) -> float | None:
    """The size of an expression, of the right side of `x = …`, at a fixed point; None where it has none."""
    expression = symbolic._parsed(answer)[0]
    if isinstance(expression, Eq) and isinstance(expression.lhs, Symbol):
        expression = expression.rhs
    try:
        value = symbolic._value(expression, symbolic.POINTS[0]) if symbolic._has_value(expression) else None
        return None if value is None else float(abs(value))
    except Exception:  # whatever SymPy raises
        return None


def bucket(answer: str) -> tuple:
    """Answers that could be taken for each other: of the same value, else of the same shape."""
    reading = read(answer)
    if reading.number is not None:
        return "value", float(f"{float(reading.number.value):.5g}")
    value = None if reading.is_costly else size_of(reading.text)
    if value is not None:
        return "value", float(f"{value:.5g}")
    within = bracketed(reading.text)
    if within:
        return "brackets", len(within[1])
    shape = "costly" if reading.is_costly else "matrix" if "matrix" in reading.text else "=" * ("=" in answer)
    return shape, len(items(reading.text))


def too_late(*_) -> None:
    raise TimeoutError


def rule_of_a_hit(predicted: str, expected: str) -> str | None:
    """The rule by which the two are judged the same, or not told; None where they are judged different."""
    signal.alarm(30)
    try:
        verdict = grade(predicted, expected)
    except TimeoutError:
        return "timeout"
    finally:
        signal.alarm(0)
    return None if verdict.is_correct is False else verdict.rule


def begin_judging() -> None:
    """In a process that judges many pairs: a pair may be given up, and each answer is parsed once."""
    signal.signal(signal.SIGALRM, too_late)
    symbolic._parsed = lru_cache(None)(symbolic._parsed.__wrapped__)


def hits_among(pairs: list[tuple[str, str]]) -> list[tuple[str, tuple[str, str]]]:
    """The pairs that are judged the same, or not told, each with its rule."""
    return [(rule, pair) for pair in pairs if (rule := rule_of_a_hit(*pair))]


def portions(pairs, size: int):
    """Lists of so many pairs, as they come."""
    pairs = iter(pairs)
    while portion := list(itertools.islice(pairs, size)):
        yield portion


@pytest.mark.trial
def test_different_gold_answers_are_not_judged_equal(dev_data):
    """All pairs within a bucket and 50,000 across. Every hit is printed; none may join two buckets without reason."""
    gold = gold_answers(dev_data)
    with multiprocessing.Pool(os.cpu_count(), begin_judging) as processes:
        buckets = collections.defaultdict(list)
        for answer, its_bucket in zip(gold, processes.map(bucket, gold, chunksize=100), strict=True):
            buckets[its_bucket].append(answer)
        chance = random.Random(1)
        across = (tuple(chance.sample(gold, 2)) for _ in range(ACROSS))
        within = [
            pair for group in sorted(buckets.values(), key=len) for pair in itertools.permutations(group, 2)
        ]  # both ways: the verdict may depend on which is expected
        hits: dict[frozenset[str], str] = {}
        for name, pairs in (("across", across), ("within", within)):
            for number, found in enumerate(processes.imap(hits_among, portions(pairs, PORTION)), 1):
                if number % 50 == 0:
                    print(f"{number * PORTION:,} pairs {name} judged, {len(hits):,} hits so far", flush=True)
                for rule, pair in found:
                    if frozenset(pair) not in hits:
                        hits[frozenset(pair)] = rule
                        print(f"HIT {name} {rule}: " + "   |   ".join(pair), flush=True)
    print(f"{len(gold):,} gold answers in {len(buckets):,} buckets, {len(within):,} pairs within, {ACROSS:,} across")
    bucket_of = {answer: each for each, group in buckets.items() for answer in group}
    joined = [pair for pair in hits if len({bucket_of[one] for one in pair}) > 1]
    assert joined == [] and "timeout" not in hits.values()
