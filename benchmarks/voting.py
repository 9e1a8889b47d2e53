"""Seconds that majority@256 takes for 5,000 problems, beside votes of raw strings: python benchmarks/voting.py

The answers are made up here: a fifth of the problems have expressions for answers, one in six of them in another
spelling than the usual one; the share of right samples is drawn anew for every problem, and wrong answers are the rarer
the further they are from the right one.
"""

import random
import time
from collections import Counter

from mathmill.grading import GradingPool
from mathmill.grading.vote import equal_by, majority

PROBLEMS, SAMPLES = 5000, 256


def spelled(number: int, is_expression: bool, chance: random.Random) -> str:
    if not is_expression:
        return chance.choice([f"{number}", f"{number}.0", f"${number}$", f"{number:,}", rf"{number}\text{{ cm}}"])
    usual = [rf"\frac{{{number}\sqrt{{2}}}}{{3}}", rf"\dfrac{{{number} \sqrt 2}}{{3}}"]
    others = [rf"\frac{{{number}}}{{3}}\sqrt{{2}}", rf"{number}\sqrt{{2}}/3"]
    return chance.choice(others if chance.random() < 1 / 6 else usual)


def answers_of_one_problem(chance: random.Random) -> list[str | None]:
    is_expression, share, right = chance.random() < 0.2, chance.random(), chance.randint(2, 5000)
    numbers = (right if chance.random() < share else right + int(chance.paretovariate(1)) for _ in range(SAMPLES))
    return [spelled(number, is_expression, chance) for number in numbers]


def main() -> None:
    chance = random.Random(1)
    problems = [answers_of_one_problem(chance) for _ in range(PROBLEMS)]
    began = time.perf_counter()
    raw = [Counter(answers).most_common(1)[0] for answers in problems]
    raw_s = time.perf_counter() - began
    pool = GradingPool()
    try:
        began = time.perf_counter()
        winners = majority(problems, equal_by(pool))
        took_s = time.perf_counter() - began
    finally:
        pool.close()
    print(f"{PROBLEMS:,} problems x {SAMPLES} answers: {took_s:.1f} s; votes of raw strings: {raw_s:.1f} s")
    print(f"problems with a winner: {sum(winner is not None for winner in winners):,}")
    print(f"mean share of raw strings' first: {sum(votes for _, votes in raw) / PROBLEMS / SAMPLES:.1%}")


if __name__ == "__main__":
    main()
