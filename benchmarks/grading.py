"""Pairs per CPU-second of the grader beside plain math-verify, in one run: python benchmarks/grading.py DATA [PAIRS]

DATA: a folder with benchmarks as SET/SPLIT.jsonl.gz (`expected_answer`) and recorded solutions of models. Half of the
pairs are answers of models beside the gold answer; half are gold answers of MATH, each with 32 predictions, the number
of samples that OpenMathInstruct-2 drew for a problem: 24 right ones in three common spellings, and two other problems'
answers of the same kind, four times each. Both graders run in a process of their own, on the same pairs in the same
order, after their parsers' tables are warm: both have met 6,400 other pairs, and the shapes that the grader's workers
are started with. Every pair that the two judge differently is listed.
"""

import gzip
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mathmill.grading.preloaded import EVERY_SHAPE

SEED = 1
WARM = 6400
PEER = """
import json, logging, sys, time
from math_verify import parse, verify
logging.disable(logging.WARNING)
warm, pairs = json.load(sys.stdin)
def judge(predicted, expected):
    return verify(parse("$" + expected + "$"), parse("$" + predicted + "$"))
for pair in warm:
    judge(*pair)
began = time.process_time()
verdicts = [judge(*pair) for pair in pairs]
json.dump([time.process_time() - began, verdicts], sys.stdout)
"""
OURS = """
import json, sys, time
import mathmill.grading.preloaded
from mathmill.grading import grade
warm, pairs = json.load(sys.stdin)
for pair in warm:
    grade(*pair)
began = time.process_time()
known = {}
verdicts = []
for pair in map(tuple, pairs):
    if not DEDUPLICATE or pair not in known:
        known[pair] = grade(*pair)
    verdicts.append(known[pair])
spent_s = time.process_time() - began
json.dump([spent_s, [(each.is_correct, each.rule) for each in verdicts]], sys.stdout)
"""


def rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def spellings(answer: str) -> list[str]:
    """The answer as it is, and as two others would write it."""
    return [answer, answer.replace(r"\frac", r"\dfrac"), answer.replace(", ", ",").replace(" + ", "+")]


def kind(answer: str) -> str:
    """A rough kind, so that a wrong prediction looks like the right one."""
    marks = [mark for mark in (r"\sqrt", r"\pi", r"\frac", "(", "[", ",", "^", "matrix", "text", "=") if mark in answer]
    return " ".join(marks) if marks else "number" if answer.lstrip("-").replace(",", "").isdigit() else "other"


def pairs_of_gold(data: Path, count: int, chance: random.Random) -> list[tuple[str, str]]:
    gold = [row["expected_answer"] for split in ("train", "test") for row in rows(data / "math" / f"{split}.jsonl.gz")]
    of_kind: dict[str, list[str]] = {}
    for answer in gold:
        of_kind.setdefault(kind(answer), []).append(answer)
    pairs = []
    for answer in chance.sample(gold, count // 32):
        wrong = [chance.choice(of_kind[kind(answer)]) for _ in range(2)]
        pairs += [(predicted, answer) for predicted in spellings(answer) * 8 + wrong * 4]
    return chance.sample(pairs, len(pairs))


def pairs_of_models(data: Path, count: int, chance: random.Random) -> list[tuple[str, str]]:
    found = []
    for path in sorted((data / "recorded" / "tora-gsm8k").glob("*.gz")):
        found += [(row["predicted_answer"] or "", row["expected_answer"]) for row in rows(path)]
    for row in rows(data / "recorded" / "gsm8k-model-solutions" / "solutions.jsonl.gz"):
        found.append((row["solution"].rpartition("A:")[2].strip(), row["expected_answer"]))
    return chance.sample(found, min(count, len(found)))


def measure(script: str, warm: list, pairs: list) -> list:
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps([warm, pairs]), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def report(name: str, warm: list[tuple[str, str]], pairs: list[tuple[str, str]]) -> None:
    began = time.perf_counter()
    peer_s, theirs = measure(PEER, warm, pairs)
    once_s, ours = measure("DEDUPLICATE = False" + OURS, warm, pairs)
    deduplicated_s, _ = measure("DEDUPLICATE = True" + OURS, warm, pairs)
    print(f"{name}: {len(pairs):,} pairs, {len(set(pairs)):,} of them different")
    print(f"  math-verify               {len(pairs) / peer_s:10,.0f} pairs a CPU-second")
    print(f"  mathmill                  {len(pairs) / once_s:10,.0f}   {peer_s / once_s:.1f} times as many")
    print(
        f"  without duplicates        {len(pairs) / deduplicated_s:10,.0f}   {peer_s / deduplicated_s:.1f} times as many"
    )
    print(f"  rules: {dict(Counter(rule for _, rule in ours).most_common())}")
    different = {
        (*pair, mine, rule): their
        for pair, (mine, rule), their in zip(pairs, ours, theirs, strict=True)
        if mine is not their
    }
    print(f"  judged differently: {len(different)} ({time.perf_counter() - began:.0f} s)")
    for (predicted, expected, mine, rule), their in different.items():
        print(f"    {predicted!r} for {expected!r}: math-verify {their}, mathmill {mine} by {rule}")


def main() -> None:
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9600
    chance = random.Random(SEED)
    gold, models = pairs_of_gold(data, count // 2, chance), pairs_of_models(data, count // 2, chance)
    warm = [(shape, shape.replace("2", "2+0")) for shape in EVERY_SHAPE] + pairs_of_gold(data, WARM, chance)
    report("gold answers of MATH", warm, gold)
    report("answers of models", warm, models)
    report("both", warm, gold + models)


if __name__ == "__main__":
    main()
