r"""Policy `omi1`: as loose as the published OpenMathInstruct-1 grader (NeMo-Skills v0.1), to compare with its numbers.

It executes nothing. It normalises strings, cuts off short heads (`x=`), calls numbers equal within 1e-4 of each other
(relative, also after x100 and /100), drops brackets and braces (so that `\frac{1}{23}` equals `\frac{12}{3}`), splits
tuples and matrices, and only then asks for symbolic equality, here math-verify's, or for values within the same 1e-4.
"""

import math
import re

from mathmill.grading.guard import too_costly
from mathmill.grading.numbers import read_number
from mathmill.grading.spelling import tight
from mathmill.records import Grade

TOLERANCE = 1e-4
SCALES = (1, 100, 0.01)

_BRACKETS = re.compile(r"[{}()\[\]]|\\[{}]")
_TRAILING_TEXT = re.compile(r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?$")
_MARKS = re.compile(r"\\?[$%]|\^\\circ|\\!|(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_SHORT_HEAD = re.compile(r"[A-Za-z]{1,2}=(?P<rest>[^=]+)")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MATRIX = re.compile(r"\\begin\{[pbv]?matrix\}(?P<inside>.*)\\end\{[pbv]?matrix\}", re.DOTALL)


def grade_as_published(predicted: str, expected: str) -> Grade | None:
    """The verdict of the rules before symbolic equality (`text`, `close`, `parts`, `guard`); None where that is asked for.

    Both answers have been trimmed already.
    """
    one, other = _normalised(predicted), _normalised(expected)
    verdict = _verdict(one, other)
    if verdict is None and (too_costly(one) or too_costly(other)):
        return Grade(is_correct=False, rule="guard")
    return verdict


def _verdict(one: str, other: str) -> Grade | None:
    if one.lower() == other.lower():
        return Grade(is_correct=True, rule="text")
    numbers = _number(one), _number(other)
    if numbers[0] is not None and numbers[1] is not None:
        return Grade(is_correct=_close(numbers[0], numbers[1]), rule="close")
    if _BRACKETS.sub("", one).lower() == _BRACKETS.sub("", other).lower():
        return Grade(is_correct=True, rule="text")
    fractions = read_number(one), read_number(other)
    if fractions[0] is not None and fractions[1] is not None:
        return Grade(is_correct=_close(float(fractions[0].value), float(fractions[1].value)), rule="close")
    mine, its = _parts(one), _parts(other)
    if len(mine) == len(its) > 1:
        verdicts = [_verdict(part, counterpart) for part, counterpart in zip(mine, its, strict=True)]
        if all(verdict is not None and verdict.is_correct for verdict in verdicts):
            return Grade(is_correct=True, rule="parts")
    return None


def _normalised(answer: str) -> str:
    """Without spaces, units, currency, percent and degree marks; a head of one or two letters is cut off."""
    answer = _MARKS.sub("", tight(_TRAILING_TEXT.sub("", answer) or answer))
    head = _SHORT_HEAD.fullmatch(answer)
    return (head["rest"] if head else answer).replace(" ", "")


def _number(answer: str) -> float | None:
    return float(answer) if _DECIMAL.fullmatch(answer) else None


def _close(one: float, other: float) -> bool:
    return any(math.isclose(one, other * scale, rel_tol=TOLERANCE) for scale in SCALES)


def _parts(answer: str) -> list[str]:
    """Rows and cells of a matrix, else what stands between the commas inside the outer brackets."""
    matrix = _MATRIX.fullmatch(answer)
    if matrix:
        return re.split(r"\\\\|&", matrix["inside"])
    if answer[:1] in ("(", "[") and answer[-1:] in (")", "]"):
        answer = answer[1:-1]
    return answer.split(",")
