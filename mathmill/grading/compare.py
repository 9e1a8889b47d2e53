"""Is this answer that answer, and by which rule: text, number, guard, symbolic."""

import re

from mathmill.grading.guard import too_costly
from mathmill.grading.marks import by_marks
from mathmill.grading.numbers import read_number, same_number
from mathmill.grading.policy import Policy, policy_named
from mathmill.records import Grade

_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_SPELLINGS = ((r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), (r"\left", ""), (r"\right", ""))
_SPELLING = re.compile("|".join(re.escape(old) + "(?![a-z])" for old, _ in _SPELLINGS))


def grade(predicted: str | None, expected: str | None, policy: str = "default") -> Grade:
    """Compare two answers in this process. Unbounded in time for hostile text: `GradingPool` bounds it.

    Rules: `no-answer`, `no-expected`, `text` (also where units, bases or times of the day tell), `number`, `guard` (too
    costly for SymPy, compared as text), `symbolic`, `crash` (the comparison failed: could not tell).
    """
    found = grade_quickly(predicted, expected, policy)
    if found is None:
        assert predicted is not None and expected is not None
        found = grade_symbolically(predicted, expected)
    return found


def grade_quickly(predicted: str | None, expected: str | None, policy: str = "default") -> Grade | None:
    """The verdict of the rules that take microseconds; None where only SymPy can tell."""
    marks = policy_named(policy)
    predicted, expected = trimmed(predicted or ""), trimmed(expected or "")
    if not expected:
        return Grade(is_correct=None, rule="no-expected")
    if not predicted:
        return Grade(is_correct=False, rule="no-answer")
    if predicted == expected:
        return Grade(is_correct=True, rule="text")
    return _by_number(predicted, expected, marks) or _by_guard(predicted, expected) or by_marks(predicted, expected)


def grade_symbolically(predicted: str, expected: str) -> Grade:
    """The verdict of math-verify; `crash` where it failed. Imports SymPy."""
    from mathmill.grading.symbolic import equal

    predicted, expected = trimmed(predicted), trimmed(expected)
    try:
        return Grade(is_correct=equal(predicted, expected), rule="symbolic")
    except (MemoryError, RecursionError):
        return Grade(is_correct=None, rule="crash")


def trimmed(answer: str) -> str:
    r"""The answer without what changes nothing: space, dollars and a full stop around it, `\left`, `\dfrac`."""
    answer = _without_stop(answer)
    for opening, closing in _PAIRS:
        if len(answer) > len(opening + closing) and answer.startswith(opening) and answer.endswith(closing):
            inner = answer[len(opening) : -len(closing)]
            if closing not in inner and not inner.endswith("\\"):
                answer = _without_stop(inner)
    answer = _SPELLING.sub(lambda found: dict(_SPELLINGS)[found.group()], answer)
    return " ".join(answer.split())


def _without_stop(answer: str) -> str:
    answer = answer.strip()
    return answer[:-1].rstrip() if answer.endswith(".") and not answer.endswith("..") else answer


def _by_number(predicted: str, expected: str, policy: Policy) -> Grade | None:
    one, other = read_number(predicted, policy), read_number(expected, policy)
    if one is None or other is None:
        return None
    return Grade(is_correct=same_number(one, other), rule="number")


def _by_guard(predicted: str, expected: str) -> Grade | None:
    if too_costly(predicted) or too_costly(expected):
        return Grade(is_correct=False, rule="guard")
    return None
