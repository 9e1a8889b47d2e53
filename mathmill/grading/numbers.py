"""Plain numbers as people, LaTeX and Python print them, read exactly and without SymPy."""

import re
from dataclasses import dataclass
from fractions import Fraction

from mathmill.grading.policy import Policy
from mathmill.grading.units import NO_UNIT, ONE_LETTER, unit_name

MAX_LENGTH = 400
"""Longer texts are no plain numbers (a bound on the cost of exact arithmetic)."""
FLOAT_NOISE = Fraction(1, 10**9)
LEAST_DIGITS = 6
"""A decimal stands for a number that it only approaches from this many digits on, both after the point and in all."""

_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,|\\!,|,\\!)[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"(?P<whole>{_DIGITS})?(?:\.(?P<part>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{{1,3}}))?")
_TIMES_TEN = re.compile(
    r"(?P<number>[0-9.]+)\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<braced>[+-]?[0-9]{1,3})\s*\}|(?P<bare>-?[0-9]{1,3}))"
)
_SLASH = re.compile(rf"(?:(?P<whole>[0-9]+)\s+)?(?P<over>{_DIGITS})\s*/\s*(?P<under>-?{_DIGITS})")
_FRAC = re.compile(
    r"(?P<whole>[0-9]+\s*)?\\[dt]?frac\s*"
    rf"(?:\{{\s*(?P<over>-?{_DIGITS})\s*\}}|(?P<over1>[0-9]))\s*(?:\{{\s*(?P<under>-?{_DIGITS})\s*\}}|(?P<under1>[0-9]))"
)
_CURRENCY = re.compile(r"(?P<sign>[+-]?)\s*\\?\$\s*(?P<rest>.+)", re.DOTALL)
_PERCENT = re.compile(r"(?P<rest>.+?)\s*(?:\\?%|percent|\\text\{\s*percent\s*\})", re.DOTALL | re.IGNORECASE)
_UNIT = re.compile(
    r"(?P<rest>.*[0-9.}])"
    r"(?:(?:\\[ ,;:!]|~|\s)*\\(?:text|mathrm|mbox)\s*\{(?P<latex>[^{}0-9]*)\}(?:\^(?:\{[23]\}|[23]))?"
    rf"|\s+(?P<words>[A-Za-z]{{2,}}(?: [A-Za-z]{{2,}}){{0,3}}|[{ONE_LETTER}]))",
    re.DOTALL,
)


@dataclass(frozen=True)
class PlainNumber:
    """A number with the marks that stood around it."""

    value: Fraction
    decimals: int | None
    """Digits after the point; None for a number without one."""
    digits: int
    """Significant digits of a decimal."""
    mark: str
    """`%`, `$` or nothing."""
    unit: str


def read_number(text: str, policy: Policy) -> PlainNumber | None:
    """The number that the whole text is, or None. `text` has been trimmed already."""
    if not text or len(text) > MAX_LENGTH:
        return None
    mark = unit = ""
    if policy.currency and (found := _CURRENCY.fullmatch(text)):
        mark, text = "$", found["sign"] + found["rest"]
    if policy.percent and (found := _PERCENT.fullmatch(text)):
        if mark:
            return None
        mark, text = "%", found["rest"]
    if policy.units and (found := _UNIT.fullmatch(text)):
        unit = unit_name(found["latex"] or found["words"] or "")
        if not NO_UNIT.isdisjoint(unit.split()):
            return None
        text = found["rest"]
    return _exact(text.strip().replace("\u2212", "-"), mark, unit)


def _exact(text: str, mark: str, unit: str) -> PlainNumber | None:
    sign = -1 if text.startswith("-") else 1
    text = text[1:].lstrip() if text[:1] in ("+", "-") else text
    if found := (_SLASH.fullmatch(text) or _FRAC.fullmatch(text)):
        parts = found.groupdict()
        over = _integer(parts["over"] or parts["over1"])
        under = _integer(parts["under"] or parts["under1"])
        if under == 0 or (parts["whole"] and (over < 0 or under < 0)):
            return None
        value = Fraction(over, under) + (_integer(parts["whole"]) if parts["whole"] else 0)
        return PlainNumber(sign * value, None, 0, mark, unit)
    if found := _TIMES_TEN.fullmatch(text):
        text = f"{found['number']}e{found['braced'] or found['bare']}"
    found = _DECIMAL.fullmatch(text)
    if not found or not (found["whole"] or found["part"]):
        return None
    whole, part, exponent = found["whole"] or "0", found["part"] or "", int(found["exponent"] or 0)
    value = (_integer(whole) + Fraction(int(part or 0), 10 ** len(part))) * Fraction(10) ** exponent
    is_decimal = bool(part) or found["exponent"] is not None
    decimals = max(0, len(part) - exponent) if is_decimal else None
    digits = len((re.sub(r"[^0-9]", "", whole) + part).lstrip("0"))
    return PlainNumber(sign * value, decimals, digits, mark, unit)


def _integer(text: str) -> int:
    return int(re.sub(r"[^0-9-]", "", text))


def same_number(one: PlainNumber, other: PlainNumber) -> bool:
    """Equal exactly; or one is a decimal of many digits that the other rounds or cuts to. Integers are never near."""
    if (one.mark and other.mark and one.mark != other.mark) or (one.unit and other.unit and one.unit != other.unit):
        return False
    if one.mark == "%" and other.mark == "":
        return _near(one, other, Fraction(1)) or _near(one, other, Fraction(1, 100))
    if other.mark == "%" and one.mark == "":
        return same_number(other, one)
    return _near(one, other, Fraction(1))


def _near(one: PlainNumber, other: PlainNumber, scale: Fraction) -> bool:
    mine = one.value * scale
    if mine == other.value:
        return True
    tolerances = [Fraction(0)]
    for number in (one, other):
        if number.decimals is not None and number.decimals >= LEAST_DIGITS and number.digits >= LEAST_DIGITS:
            tolerances += [Fraction(1, 10**number.decimals), FLOAT_NOISE * abs(other.value)]
    return abs(mine - other.value) <= max(tolerances)
