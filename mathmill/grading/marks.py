"""What SymPy's reader drops or misreads: units, a.m. and p.m., the base of a numeral, times of the day, words."""

import math
import re

from mathmill.grading.policy import Policy
from mathmill.grading.units import NO_UNIT, SHORT_UNITS, powered, unit_name
from mathmill.records import Grade

_IN_BASE = re.compile(r"(?P<sign>-?)(?P<digits>[0-9A-F]+)_\s*(?:\{\s*(?P<braced>[0-9]{1,2})\s*\}|(?P<bare>[0-9]))")
_PLAIN_NUMERAL = re.compile(
    r"-?\\?\$?[0-9][0-9A-F]*(?:(?:,|,\\!|\{,\})[0-9]{3})*(?:\\[ ,;]|\s)*"
    r"(?:\^\s*\{?\\circ\}?|\\?%|\\(?:text|mbox|mathrm)\s*\{.*|[a-z].*)?",
    re.DOTALL,
)
"""Also with a mark or a unit behind it."""
_MARKED = re.compile(
    r"(?P<body>.*(?:[0-9})\]]|\\pi))\s*"
    r"(?:\\(?:text|mathrm|mbox)\s*\{(?P<latex>[^{}0-9]*)\}|(?P<words>[A-Za-z][A-Za-z. /]*))(?P<power>\^(?:\{[23]\}|[23]))?",
    re.DOTALL,
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_CLOCK = re.compile(r"0?(?P<hour>[0-9]{1,2}):(?P<minute>[0-5][0-9])(?::[0-5][0-9])?")
_RATIO = re.compile(r"[0-9]+\s*:\s*[0-9]+")
_LONG_RATIO = re.compile(r"[0-9]{1,20}(?:\s*:\s*[0-9]{1,20}){2,20}")
"""SymPy's reader would divide by each term in turn."""
_SPACE = re.compile(r"\\[ ,;:!]|~|\s+")
WHOLE_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")
_CAPITALS = re.compile(r"[A-Z]{3,}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]+")
_ARTICLE = re.compile(r"(?:the|an?) ", re.IGNORECASE)
_PLURAL = re.compile(r"(?<=[A-Za-rt-z]{3})s\b")
_NO_LETTER = re.compile(r"[^A-Za-z]+")


def by_marks(predicted: str, expected: str, policy: Policy) -> Grade | None:
    """A verdict where the marks tell; None where SymPy may be asked."""
    verdict = _by_base(predicted, expected)
    if verdict is None:
        verdict = _by_ratio(predicted, expected)
    if verdict is None:
        verdict = _by_words(predicted, expected, policy)
    if verdict is None:
        verdict = _by_unit_and_time(split_unit(predicted), split_unit(expected), policy)
    return None if verdict is None else Grade(is_correct=verdict, rule="text")


def _by_words(predicted: str, expected: str, policy: Policy) -> bool | None:
    """Two words are the same or not, once one is marked as text or both are capitals: other letters may be a product."""
    if _CAPITALS.fullmatch(predicted) and _CAPITALS.fullmatch(expected):
        return predicted == expected
    marked = [WHOLE_TEXT.fullmatch(predicted), WHOLE_TEXT.fullmatch(expected)]
    words = [found[1].strip() if found else text for found, text in zip(marked, (predicted, expected), strict=True)]
    if not any(marked) or not all(map(_WORDS.fullmatch, words)):
        return None
    one, other = (_NO_LETTER.sub("", _PLURAL.sub("", _ARTICLE.sub("", text))) for text in words)
    return one.lower() == other.lower() if policy.ignore_case else one == other


def _by_ratio(predicted: str, expected: str) -> bool | None:
    """Ratios of three terms and more, reduced or not."""
    found = [_LONG_RATIO.fullmatch(text) for text in (predicted, expected)]
    if not any(found):
        return None
    return all(found) and _reduced(predicted) == _reduced(expected)


def _reduced(ratio: str) -> list[int]:
    terms = [int(term) for term in ratio.split(":")]
    common = math.gcd(*terms) or 1
    return [term // common for term in terms]


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


def split_unit(answer: str) -> tuple[str, str]:
    """The answer without its unit, and the unit. What holds a letter elsewhere is algebra and has none."""
    whole = WHOLE_TEXT.fullmatch(answer)
    answer = _SPACE.sub(" ", whole[1] if whole else answer).strip()
    found = _MARKED.fullmatch(answer)
    if not found or any(letter.isalpha() for letter in _COMMAND.sub("", found["body"])):
        return answer, ""
    unit = unit_name(found["latex"] or found["words"] or "")
    words = unit.replace("/", " ").split()
    is_unit = found["latex"] is not None or all(len(word) > 2 or word in SHORT_UNITS for word in words)
    if not words or not is_unit or not NO_UNIT.isdisjoint(words):
        return answer, ""
    return found["body"].strip(), powered(unit, found["power"])


def _by_unit_and_time(one: tuple[str, str], other: tuple[str, str], policy: Policy) -> bool | None:
    if one[1] != other[1] and ((one[1] and other[1]) or not policy.units):
        return False
    bodies = [body.replace(" ", "") for body, _ in (one, other)]
    if not (_is_time(bodies[0], one[1]) or _is_time(bodies[1], other[1])):
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
