"""Is this answer that answer, and by which rule: from the cheapest rule that can tell to the second look."""

from dataclasses import dataclass
from functools import lru_cache

from mathmill.grading.guard import too_costly
from mathmill.grading.marks import by_marks
from mathmill.grading.numbers import PlainNumber, read_number, same_number
from mathmill.grading.omi1 import TOLERANCE, grade_as_published
from mathmill.grading.parts import bracketed, by_parts, items
from mathmill.grading.policy import Policy, policy_named
from mathmill.grading.spelling import tight, trimmed
from mathmill.records import Grade

KNOWN_READINGS = 1 << 15
LONGEST_KNOWN = 200
"""Characters: longer answers are read anew each time, so that what is kept in memory is bounded."""
LONGEST_TIGHTENED = 10_000


@dataclass(frozen=True)
class Reading:
    """What the quick rules see in an answer."""

    text: str
    key: str
    """Answers with the same key are the same answer."""
    number: PlainNumber | None
    is_costly: bool


def grade(predicted: str | None, expected: str | None, policy: str = "default") -> Grade:
    """Compare two answers in this process. Unbounded in time for hostile text: `GradingPool` bounds it.

    Rules: `no-answer`, `no-expected`, `text` (also where units, bases or times of the day tell), `number`, `guard` (too
    costly for SymPy, compared as text), `symbolic` (math-verify), `second-look:RULE`, `crash` (the comparison failed:
    could not tell); under the policy `omi1` also `close` and `parts`.
    """
    found = grade_quickly(predicted, expected, policy)
    if found is None:
        assert predicted is not None and expected is not None
        found = grade_slowly(predicted, expected, policy)
    return found


def grade_quickly(predicted: str | None, expected: str | None, policy: str = "default") -> Grade | None:
    """The verdict of the rules that take microseconds; None where only SymPy can tell."""
    rules = policy_named(policy)
    one, other = read(predicted or ""), read(expected or "")
    if not other.text:
        return Grade(is_correct=None, rule="no-expected")
    if not one.text:
        return Grade(is_correct=False, rule="no-answer")
    if one.text == other.text:
        return Grade(is_correct=True, rule="text")
    if rules.published:
        return grade_as_published(one.text, other.text)
    return (
        _by_number(one, other, rules)
        or _by_text(one, other, rules)
        or by_marks(one.text, other.text, rules)
        or by_parts(one.text, other.text, rules)
    )


def grade_slowly(predicted: str, expected: str, policy: str = "default") -> Grade:
    """The verdict of math-verify and of the second look; `crash` where they failed. Imports SymPy."""
    from mathmill.grading.second_look import is_mistaken_yes, look_again
    from mathmill.grading.symbolic import equal, equal_within

    rules = policy_named(policy)
    predicted, expected = trimmed(predicted), trimmed(expected)
    try:
        if equal(predicted, expected) and (rules.published or not is_mistaken_yes(predicted, expected, policy)):
            return Grade(is_correct=True, rule="symbolic")
        if rules.published:
            is_close = equal_within(predicted, expected, TOLERANCE)
            return Grade(is_correct=is_close, rule="close" if is_close else "symbolic")
        rule = look_again(predicted, expected, policy)
    except (MemoryError, RecursionError):
        return Grade(is_correct=None, rule="crash")
    return Grade(is_correct=rule is not None, rule=f"second-look:{rule}" if rule else "symbolic")


def read(answer: str) -> Reading:
    """What the quick rules see in this answer; short answers are read once."""
    return _known(answer) if len(answer) <= LONGEST_KNOWN else _read(answer)


def _read(answer: str) -> Reading:
    text = trimmed(answer)
    number = read_number(text)
    key = text if number or len(text) > LONGEST_TIGHTENED else tight(text)
    return Reading(text, key, number, number is None and too_costly(text))


_known = lru_cache(KNOWN_READINGS)(_read)


def _by_number(one: Reading, other: Reading, policy: Policy) -> Grade | None:
    if one.number is None or other.number is None:
        return None
    return Grade(is_correct=same_number(one.number, other.number, policy), rule="number")


def _by_text(one: Reading, other: Reading, policy: Policy) -> Grade | None:
    if one.key == other.key:
        return Grade(is_correct=True, rule="text")
    if one.is_costly or other.is_costly:
        return Grade(is_correct=policy.any_order and _have_same_items(one.text, other.text), rule="guard")
    return None


def _have_same_items(one: str, other: str) -> bool:
    """Whether two lists without brackets are written alike but for their order."""
    if max(len(one), len(other)) > LONGEST_TIGHTENED or bracketed(one) or bracketed(other):
        return False
    mine, theirs = (sorted(map(tight, items(text))) for text in (one, other))
    return len(mine) > 1 and mine == theirs
