"""Marks that SymPy's reader drops or misreads: units, a.m. and p.m., the base of a numeral, times of the day."""

import math
import re

from mathmill.grading.units import NO_UNIT, SHORT_UNITS, unit_name
from mathmill.records import Grade

_IN_BASE = re.compile(r"(?P<sign>-?)(?P<digits>[0-9A-F]+)_\s*(?:\{\s*(?P<braced>[0-9]{1,2})\s*\}|(?P<bare>[0-9]))")
_PLAIN_NUMERAL = re.compile(r"-?[0-9][0-9A-F]*")
_MARKED = re.compile(
    r"(?P<body>.*(?:[0-9})\]]|\\pi))\s*"
    r"(?:\\(?:text|mathrm|mbox)\s*\{(?P<latex>[^{}0-9]*)\}(?:\^(?:\{[23]\}|[23]))?|(?P<words>[A-Za-z][A-Za-z. ]*))",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CLOCK = re.compile(r"0?(?P<hour>[0-9]{1,2}):(?P<minute>[0-5][0-9])(?::[0-5][0-9])?")
_RATIO = re.compile(r"[0-9]+\s*:\s*[0-9]+")
_SPACE = re.compile(r"\\[ ,;:!]|~|\s+")
_WHOLE_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}")


def by_marks(predicted: str, expected: str) -> Grade | None:
    """A verdict where the marks tell; None where SymPy may be asked."""
    verdict = _by_base(predicted, expected)
    if verdict is None:
        verdict = _by_unit_and_time(_split(predicted), _split(expected))
    return None if verdict is None else Grade(is_correct=verdict, rule="text")


def _by_base(predicted: str, expected: str) -> bool | None:
    """A numeral with a base equals only the same numeral with the same base."""
    one, other = _IN_BASE.fullmatch(predicted), _IN_BASE.fullmatch(expected)
    if one and other:
        return _numeral(one) == _numeral(other)
    if (one and _PLAIN_NUMERAL.fullmatch(expected)) or (other and _PLAIN_NUMERAL.fullmatch(predicted)):
        return False
    return None


def _numeral(found: re.Match[str]) -> tuple[str, str, int]:
    return found["sign"], found["digits"].lstrip("0"), int(found["braced"] or found["bare"])


def _split(answer: str) -> tuple[str, str]:
    """The answer without its unit, and the unit. What holds a letter elsewhere is algebra and has none."""
    whole = _WHOLE_TEXT.fullmatch(answer)
    answer = _SPACE.sub(" ", whole[1] if whole else answer).strip()
    found = _MARKED.fullmatch(answer)
    if not found or any(letter.isalpha() for letter in _COMMAND.sub("", found["body"])):
        return _tight(answer), ""
    unit = unit_name(found["latex"] or found["words"] or "")
    words = unit.split()
    is_unit = found["latex"] is not None or unit in SHORT_UNITS or all(len(word) > 2 for word in words)
    if not words or not is_unit or not NO_UNIT.isdisjoint(words):
        return _tight(answer), ""
    return _tight(found["body"]), unit


def _tight(text: str) -> str:
    return text.replace(" ", "")


def _by_unit_and_time(one: tuple[str, str], other: tuple[str, str]) -> bool | None:
    if one[1] and other[1] and one[1] != other[1]:
        return False
    bodies = (one[0], other[0])
    if not (_is_time(*one) or _is_time(*other)):
        return None
    if all(map(_CLOCK.fullmatch, bodies)):
        return bodies[0].removeprefix("0") == bodies[1].removeprefix("0")
    # 20:30 beside 2:3 is a ratio that was not reduced; beside anything else it is no number
    return None if all(map(_RATIO.fullmatch, bodies)) else False


def _is_time(body: str, unit: str) -> bool:
    """Whether this is a time rather than a ratio, whose parts would share no factor: 10:30, 1:05, 5:31 pm."""
    found = _CLOCK.fullmatch(body)
    if not found:
        return False
    return (
        unit in ("am", "pm")
        or found["minute"].startswith("0")
        or math.gcd(int(found["hour"]), int(found["minute"])) > 1
    )
