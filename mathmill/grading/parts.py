"""Answers of several parts: lists, sets, points, intervals, matrices; what stands between their commas."""

import re
from collections.abc import Callable

from mathmill.grading.marks import WHOLE_TEXT
from mathmill.grading.numbers import PlainNumber, read_number, same_number
from mathmill.grading.policy import Policy
from mathmill.records import Grade

Same = Callable[[str, str], bool]
MOST_ITEMS = 50
_BETWEEN_ITEMS = re.compile(r",?\s*(?:\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*|\s*[,;]\s*")
_OPENING, _CLOSING = "([{", ")]}"
_MATRIX = re.compile(r"\\begin\{[pb]matrix\}(?P<inside>[^{}]*(?:\{[^{}]*\}[^{}]*)*)\\end\{[pb]matrix\}", re.DOTALL)


def by_parts(predicted: str, expected: str, policy: Policy) -> Grade | None:
    """The verdict on two points, intervals, matrices or bare lists whose parts are all plain numbers; else None.

    Lists in any order are told only where all is exact: numbers with marks, or rounded, look for partners elsewhere.
    """
    one, other = _numbers(predicted), _numbers(expected)
    if one is None or other is None or (one[0] != other[0] and "" in (one[0], other[0])):
        return None
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        are_same = False
    elif one[0] == "" and policy.any_order:
        if not all(number.is_exact for number in one[1] + other[1]):
            return None
        are_same = sorted(number.value for number in one[1]) == sorted(number.value for number in other[1])
    else:
        are_same = all(same_number(mine, its, policy) for mine, its in zip(one[1], other[1], strict=True))
    return Grade(is_correct=are_same, rule="number")


def _numbers(answer: str) -> tuple[str, list[PlainNumber]] | None:
    """What stands around the parts (brackets, the shape of a matrix, nothing), and the parts, if all are plain numbers."""
    matrix = _MATRIX.fullmatch(answer)
    if matrix:
        rows = [row.split("&") for row in matrix["inside"].split("\\\\")]
        around, texts = "matrix " + " ".join(str(len(row)) for row in rows), [cell for row in rows for cell in row]
    elif found := bracketed(answer):
        around, texts = found
    else:
        around, texts = "", [] if read_number(answer) else items(answer)
    if len(texts) < 2 or (not around and (len(texts) > MOST_ITEMS or answer[:2] == "\\{")):
        return None
    numbers = [number for text in texts if (number := read_number(text.strip()))]
    return (around, numbers) if len(numbers) == len(texts) else None


def items(answer: str) -> list[str]:
    """What stands between the commas and the words `and`, `or` outside all brackets; of a set, what is in it."""
    whole = WHOLE_TEXT.fullmatch(answer.strip())
    answer = whole[1] if whole else answer.strip()
    if answer.startswith(r"\{") and answer.endswith(r"\}") and r"\}" not in answer[2:-2]:
        answer = answer[2:-2]
    elif answer.startswith("[") and answer.endswith("]") and answer.count(",") > 1 and answer.count("[") == 1:
        answer = answer[1:-1]  # a list as Python prints it: an interval has two ends
    found, start, position, depth = [], 0, 0, 0
    while position < len(answer):
        between = _BETWEEN_ITEMS.match(answer, position) if depth == 0 else None
        if between:
            found.append(answer[start:position])
            start = position = between.end()
            continue
        depth += (answer[position] in _OPENING) - (answer[position] in _CLOSING)
        position += 1
    return [item for item in [*found, answer[start:]] if item.strip()]


def same_items(mine: list[str], theirs: list[str], policy: Policy, same: Same) -> bool:
    """Whether every item has a partner of its own, at its own place where order counts."""
    if not 1 < len(mine) == len(theirs) <= MOST_ITEMS:
        return False
    if not policy.any_order:
        return all(same(one, other) for one, other in zip(mine, theirs, strict=True))
    left = list(theirs)
    for one in mine:
        partner = next((place for place, other in enumerate(left) if same(one, other)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def bracketed(answer: str) -> tuple[str, list[str]] | None:
    """The two brackets around the answer, and what is between them."""
    answer = answer.strip()
    if answer[:1] not in ("(", "[") or answer[-1:] not in (")", "]"):
        return None
    inside = answer[1:-1]
    depth = 0
    for letter in inside:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if depth < 0:
            return None
    return answer[0] + answer[-1], items(inside)
