"""The gold answers of benchmarks: each equals itself and its respellings, and different ones are not judged equal."""

import collections
import gzip
import json
import random
import re
from pathlib import Path

import pytest

from mathmill.grading import GradingPool
from mathmill.grading.compare import read
from mathmill.grading.pairs import grade_all
from mathmill.grading.parts import bracketed, items
from mathmill.grading.symbolic import value_of

BENCHMARKS = ("math/train", "math/test", "olympiadbench/test", "amc23/test", "aime24/test", "omni-math-rule/test",
              "minerva-math/test")  # fmt: skip
ACROSS = 50_000
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


def bucket(answer: str) -> tuple:
    """Answers that could be taken for each other: of the same value, else of the same shape."""
    reading = read(answer)
    if reading.number is not None:
        return "value", float(f"{float(reading.number.value):.5g}")
    value = None if reading.is_costly else value_of(reading.text)
    if value is not None:
        return "value", float(f"{value:.5g}")
    within = bracketed(reading.text)
    if within:
        return "brackets", len(within[1])
    return "costly" if reading.is_costly else "matrix" if "matrix" in reading.text else "=" * ("=" in answer), len(
        items(reading.text)
    )


@pytest.mark.trial
def test_different_gold_answers_are_not_judged_equal(dev_data, pool):
    """All pairs within a bucket and 50,000 across. Every hit is printed; those of unequal value or shape must be listed."""
    gold = gold_answers(dev_data)
    buckets = collections.defaultdict(list)
    for answer in gold:
        buckets[bucket(answer)].append(answer)
    chance = random.Random(1)
    within = [(one, other) for group in buckets.values() for one in group for other in group if one is not other]
    across = [tuple(chance.sample(gold, 2)) for _ in range(ACROSS)]
    hits = collections.Counter()
    for start in range(0, len(within + across), 20_000):
        some = (within + across)[start : start + 20_000]
        for pair, verdict in zip(some, grade_all(some, pool), strict=True):
            if verdict.is_correct is not False:
                hits[frozenset(pair), verdict.rule] += 1
    print(f"{len(gold):,} gold answers, {len(buckets):,} buckets, {len(within):,} pairs within, {len(across):,} across")
    for (pair, rule), _ in sorted(hits.items(), key=lambda item: (item[0][1], sorted(item[0][0]))):
        print(f"HIT {rule}: " + "   |   ".join(sorted(pair)))
    unexplained = [pair for pair, rule in hits if len({bucket(one)[1] for one in pair}) > 1 and rule != "timeout"]
    assert unexplained == []
