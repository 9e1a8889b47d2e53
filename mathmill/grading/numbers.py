"""Plain numbers as people, LaTeX and Python print them, read exactly and without SymPy."""

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction

from mathmill.grading.policy import LEAST_ROUNDED_DIGITS, Policy
from mathmill.grading.units import NO_UNIT, ONE_LETTER, powered, split_multiplier, unit_name

MAX_LENGTH = 400
"""Longer texts are no plain numbers (a bound on the cost of exact arithmetic)."""
FLOAT_NOISE = Fraction(1, 10**9)

_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,|\{\\,\}|\\;|\\!,|,\\!)[0-9]{3})+|[0-9]+)"
_DECIMAL = re.compile(rf"(?P<whole>{_DIGITS})?(?:\.(?P<part>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]{{1,3}}))?")
_REPEATING = re.compile(
    r"(?P<whole>[0-9]*)\.(?P<once>[0-9]*)\\(?:overline|bar)\s*(?:\{(?P<again>[0-9]+)\}|(?P<one>[0-9]))"
)
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
_DEGREES = re.compile(r"(?P<rest>.*[0-9.}])\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)", re.DOTALL)
_UNIT = re.compile(
    r"(?P<rest>.*[0-9.}])"
    r"(?:(?:\\[ ,;:!]|~|\s)*\\(?:text|mathrm|mbox)\s*\{(?P<latex>[^{}0-9]*)\}(?P<power>\^(?:\{[23]\}|[23]))?"
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

    @property
    def is_exact(self) -> bool:
        """Whether it is its value alone: no mark, no unit, not of so many digits that it may be a rounded number."""
        return not self.mark and not self.unit and (self.decimals is None or self.decimals < LEAST_ROUNDED_DIGITS)


def read_number(text: str) -> PlainNumber | None:
    """The number that the whole text is, or None. `text` has been trimmed already."""
    if not text or len(text) > MAX_LENGTH:
        return None
    mark, unit, times = "", "", 1
    if found := _CURRENCY.fullmatch(text):
        mark, text = "$", found["sign"] + found["rest"]
    if found := _PERCENT.fullmatch(text):
        if mark:
            return None
        mark, text = "%", found["rest"]
    if found := _DEGREES.fullmatch(text):
        unit, text = "degree", found["rest"]
    elif found := _UNIT.fullmatch(text):
        unit = powered(unit_name(found["latex"] or found["words"] or ""), found["power"])
        times, unit = split_multiplier(unit)
        if not NO_UNIT.isdisjoint(unit.split()):
            return None
        text = found["rest"]
    if unit.startswith("dollar"):
        mark, unit = mark or "$", unit[len("dollar") :].strip()
    number = _exact(text.strip(), mark, unit)
    return number if number is None or times == 1 else replace(number, value=number.value * times)


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
    if found := _REPEATING.fullmatch(text):
        once, again = found["once"], found["again"] or found["one"]
        behind = (int(once or 0) + Fraction(int(again), 10 ** len(again) - 1)) / 10 ** len(once)
        return PlainNumber(sign * (int(found["whole"] or 0) + behind), None, 0, mark, unit)
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


def same_number(one: PlainNumber, other: PlainNumber, policy: Policy) -> bool:
    """Equal exactly; or one is a decimal of many digits that the other rounds or cuts to. Integers are never near."""
    if one.unit != other.unit and ((one.unit and other.unit) or not policy.units):
        return False
    marks = {one.mark, other.mark}
    if "$" in marks and any(each.unit and not each.mark for each in (one, other)):
        return False
    if marks == {"$", "%"} or ("%" in marks and one.unit != other.unit) or (marks == {"$", ""} and not policy.currency):
        return False
    scales = [Fraction(1)]
    if marks == {"%", ""}:
        one, other = (one, other) if one.mark else (other, one)
        scales = [Fraction(1, 100), Fraction(1)] if policy.percent else [Fraction(1, 100)]
    return any(_near(one, other, scale, policy.decimal_digits) for scale in scales)


def _near(one: PlainNumber, other: PlainNumber, scale: Fraction, least_digits: int | None) -> bool:
    mine, its = one.value * scale, other.value
    if mine == its:
        return True
    if least_digits is None or mine * its < 0:
        return False
    moved = 0 if scale == 1 else 2  # places that the point of a percentage moves
    for number, value, whole, places in ((one, mine, its, moved), (other, its, mine, 0)):
        if number.decimals is not None and min(number.decimals, number.digits) >= least_digits:
            is_noise = abs(mine - its) <= FLOAT_NOISE * abs(its)
            if is_noise or _rounds_to(abs(whole), abs(value), number.decimals + places):
                return True
    return False


def _rounds_to(number: Fraction, rounded: Fraction, decimals: int) -> bool:
    """Whether the number, cut or rounded to so many decimals, gives the other."""
    in_last_place = number * 10**decimals
    return rounded * 10**decimals in (math.floor(in_last_place), math.floor(in_last_place + Fraction(1, 2)))
