"""What is asked once math-verify said no: rules that rewrite two answers into ones that can be compared."""

import re
from collections.abc import Callable
from functools import partial

from mathmill.grading.compare import grade_quickly
from mathmill.grading.intervals import as_interval
from mathmill.grading.marks import split_unit
from mathmill.grading.numbers import read_number
from mathmill.grading.parts import Same, bracketed, items, same_items
from mathmill.grading.policy import Policy, policy_named
from mathmill.grading.spelling import tight
from mathmill.grading.symbolic import equal
from mathmill.grading.words import joined_otherwise, words_differ

Rule = Callable[[str, str, Policy, Same], bool]
DEPTH = 3
"""How often an answer may be rewritten: a head, then a list, then an item of it."""

_NAME = r"(?:\\?[A-Za-z]+|\\(?:text|mathrm|angle)\s*\{?[A-Za-z ]+\}?|\|[A-Z]+\||\([a-z](?:,\s*[a-z])*\))"
_HEAD = re.compile(
    rf"(?!\\not(?![A-Za-z]))(?P<name>{_NAME}'?(?:_\{{?[A-Za-z0-9]+\}}?)?(?:\^\{{-1\}})?(?:\([A-Za-z](?:,\s*[A-Za-z])*\))?)\s*"
    r"(?:=|\\approx|\\in(?![A-Za-z]))(?P<rest>[^=]+)"
)
_ANNOUNCED = re.compile(r"(?:=|\\approx|\\implies|\\text\s*\{[^{}]*(?:is|are|:|=)\s*\})\s*(?P<rest>.+)", re.DOTALL)
_CHOICE = re.compile(r"\(?(?P<letter>[A-H])\)?")
_CHOSEN = re.compile(
    r"(?:\\(?:text(?:bf|rm)?|mathrm|mathbf)\s*\{\s*)?"
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+\(?(?P<named>[A-H])\)?|\((?P<bracketed>[A-Ha-h])\)|(?P<bare>[A-H])(?=[).:]))[).:]?\s*\}?"
    r"(?:(?:\s|~|\\[ ,;])*(?=[0-9$\\-]|[A-Za-z]{2})(?P<rest>.*))?",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(r"\([A-Ha-h]\)|\b[A-H]\)")
_BASE = re.compile(r"[0-9]_\s*\{?\s*([0-9]+)")
_ASSIGNMENT = re.compile(r"([A-Za-z])\s*=\s*([^=]+)")


def look_again(predicted: str, expected: str, policy: str, depth: int = DEPTH) -> str | None:
    """The name of the rule under which the two are the same answer; None where there is none."""
    same = partial(_same, policy=policy, depth=depth - 1)
    if depth:
        for name, rule in RULES.items():
            if rule(predicted, expected, policy_named(policy), same):
                return name
    return None


def is_mistaken_yes(predicted: str, expected: str, policy: str) -> bool:
    """Whether math-verify's yes is not to be believed.

    It drops words (`2 \\text{ hours } 30 \\text{ minutes}` equals 2), primes and bases (`x = 12` equals `12_5`), reads bare
    lists as sets (`1,1,2` equals `1,2,2`), tuples beside lists too (`(2,1)` equals `x=1, y=2`), and forgets which brackets
    stand around what is no interval (`(2,1)` equals `[2,1]`).
    """
    same = partial(_same, policy=policy, depth=DEPTH - 1)
    if words_differ(predicted, expected, same) or _BASE.findall(predicted) != _BASE.findall(expected):
        return True
    one, other = bracketed(predicted), bracketed(expected)
    if one and other:
        return one[0] != other[0]
    mine, theirs = items(predicted), items(expected)
    my_order, their_order = _in_order(predicted), _in_order(expected)
    if my_order or their_order:
        mine, theirs = my_order or mine, their_order or theirs
        if min(len(mine), len(theirs)) > 1:
            return len(mine) != len(theirs) or not all(map(same, mine, theirs))
    if not 1 < len(mine) == len(theirs) or "{" in predicted[:2] + expected[:2]:
        return False
    return not same_items(mine, theirs, policy_named(policy), same)


def _same(predicted: str, expected: str, policy: str, depth: int) -> bool:
    """As the whole grader judges it, with at most `depth` rewritings more."""
    predicted, expected = predicted.strip(), expected.strip()
    verdict = grade_quickly(predicted, expected, policy)
    if verdict is not None:
        return verdict.is_correct is True
    if equal(predicted, expected) and not is_mistaken_yes(predicted, expected, policy):
        return True
    return look_again(predicted, expected, policy, depth) is not None


def _in_order(answer: str) -> list[str] | None:
    """The parts of a tuple, or what several names are set to, in the order of the alphabet; else None."""
    found = bracketed(answer) or _assigned(answer)
    return found[1] if found and found[0] == "()" and len(found[1]) > 1 else None


def _choice(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """`(C) 12`, `C.` and `\\text{(C)}` where the expected answer is the letter C."""
    gold, chosen = _CHOICE.fullmatch(tight(expected)), _CHOSEN.fullmatch(predicted)
    if gold and (alone := _CHOICE.fullmatch(tight(predicted))):
        return alone["letter"] == gold["letter"]
    if not gold or not chosen or _OTHER_CHOICE.search(chosen["rest"] or ""):
        return False
    return (chosen["named"] or chosen["bracketed"] or chosen["bare"]).upper() == gold["letter"]


def _head(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """`f(x)=`, `x=`, `x \\in` in front of one answer, or the same in front of both."""
    one, other = _HEAD.fullmatch(predicted), _HEAD.fullmatch(expected)
    if one and other and tight(one["name"]) != tight(other["name"]):
        return False
    if any("=" in answer for answer, head in ((predicted, one), (expected, other)) if not head):
        return False
    rests = one["rest"] if one else predicted, other["rest"] if other else expected
    return bool(one or other) and same(*rests)


def _announced(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """`= 5`, `\\approx 3.14`, `\\text{the area is } 5`: words in front of the predicted answer."""
    found = _ANNOUNCED.fullmatch(predicted)
    return found is not None and same(found["rest"], expected)


def _unit(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """A unit or words behind one answer, or the same behind both; others were told apart before."""
    if not policy.units:
        return False
    (one, unit), (other, other_unit) = split_unit(predicted), split_unit(expected)
    if len(other_unit) == 1 and expected.strip("$")[-2:-1].isdigit():
        return False  # `6m` as the expected answer is a product
    return bool(unit or other_unit) and same(one, other)


def _degrees(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """Degrees beside radians; or the mark of degrees missing on one side."""
    one, other = tight(predicted), tight(expected)
    if (r"^\circ" in one) == (r"^\circ" in other) or re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", one + other):
        return False
    without_mark = other if r"^\circ" in one else one
    if split_unit(without_mark)[1] or "%" in without_mark:
        return False  # it has another unit
    factor = r"\cdot\frac{\pi}{180}" if r"\pi" in without_mark else ""
    return same(one.replace(r"^\circ", factor), other.replace(r"^\circ", factor))


def _interval(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """Inequality, set builder and interval."""
    one, other = as_interval(predicted), as_interval(expected)
    if one is None or other is None or (one.name and other.name and one.name != other.name):
        return False
    written = [_spaceless(text) for text in (one.text, other.text)]
    is_rewritten = written != [_spaceless(tight(answer)) for answer in (predicted, expected)]
    return is_rewritten and same(one.text, other.text)


def _plus_minus(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """`1 \\pm \\sqrt 2` is the list of its two values."""
    if r"\pm" not in predicted + expected:
        return False
    one, other = ([value for item in items(text) for value in _both_signs(item)] for text in (predicted, expected))
    return same_items(one, other, policy, same)


def _list(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """The items of a list that stands without brackets, or in the braces of a set, in any order."""
    if read_number(expected) or read_number(predicted) or joined_otherwise(predicted, expected):
        return False
    if bool(_in_order(predicted)) != bool(_in_order(expected)):
        return False
    return same_items(items(predicted), items(expected), policy, same)


def _tuple(predicted: str, expected: str, policy: Policy, same: Same) -> bool:
    """Points, tuples and intervals between the same brackets, item by item; `x=1, y=2` for the point `(1,2)`."""
    other = bracketed(expected)
    if other is None:
        return False
    one = bracketed(predicted) or _assigned(predicted)
    return (
        one is not None
        and one[0] == other[0]
        and len(one[1]) == len(other[1]) > 1
        and all(same(mine, its) for mine, its in zip(one[1], other[1], strict=True))
    )


RULES: dict[str, Rule] = {
    "choice": _choice,
    "head": _head,
    "announced": _announced,
    "unit": _unit,
    "degrees": _degrees,
    "interval": _interval,
    "plus-minus": _plus_minus,
    "list": _list,
    "tuple": _tuple,
}
"""In the order in which they are tried."""


def _both_signs(item: str) -> list[str]:
    r"""The values of an item with one `\pm`, or with `\pm` and `\mp` that go together."""
    marks = re.findall(r"\\pm|\\mp", item)
    if len(marks) != 1 and r"\mp" not in marks:
        return [item]
    plus = item.replace(r"\pm", "+").replace(r"\mp", "-")
    minus = item.replace(r"\pm", "-").replace(r"\mp", "+")
    return [value.strip().removeprefix("+") for value in (plus, minus)]


def _assigned(answer: str) -> tuple[str, list[str]] | None:
    """`x=1, y=2`, or `y=2, x=1`, as the point `(1, 2)`: its names in the order of the alphabet."""
    found = [_ASSIGNMENT.fullmatch(item.strip()) for item in items(answer)]
    values = {one[1]: one[2] for one in found if one}
    if len(values) != len(found):
        return None
    return "()", [values[name] for name in sorted(values)]


def _spaceless(text: str) -> str:
    return text.replace(" ", "")
