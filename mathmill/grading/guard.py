"""What an answer would cost in SymPy, seen from its text alone."""

import math
import re

MAX_LENGTH = 1000
MAX_DEPTH = 20
MAX_COMMANDS = 100
MAX_DIGITS = 100
MAX_EXPONENT = 1000
MAX_EXPONENT_OF_SUM = 40
MAX_FACTORIAL = 500
MAX_TERMS = 200

_LONG_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1},}}")
_POWER = re.compile(r"(?:\^|\*\*)\s*\{?\s*\(?\s*-?\s*([0-9]+)")
_POWER_OF_BRACKET = re.compile(r"[)\]}]\s*(?:\^|\*\*)\s*\{?\s*\(?\s*-?\s*([0-9]+)")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_POWER_ABOVE = re.compile(
    r"(?=(?:\^|\*\*)\s*(?:\{[^{}]*?|\([^()]*?|)\s*([0-9]+)\s*(?:\^|\*\*)\s*[{(]?\s*([0-9]+)\s*((?:\^|\*\*)?))"
)
_FACTORIAL = re.compile(r"([0-9]+)\s*\)*\s*!")
_REPEATED_FACTORIAL = re.compile(r"!\s*\)*\s*!")
_SUM_TO = re.compile(r"\\(?:sum|prod)\b.{0,60}?\^\s*\{?\s*([0-9]+)", re.DOTALL)


def too_costly(answer: str) -> bool:
    """Whether this text is to be compared as text only: long, deep, of huge numbers, powers of powers, factorials."""
    return (
        len(answer) > MAX_LENGTH
        or "\0" in answer
        or answer.count("\\") > MAX_COMMANDS
        or answer.count(",") > MAX_TERMS
        or _depth(answer) > MAX_DEPTH
        or _LONG_DIGITS.search(answer) is not None
        or any(int(exponent) > MAX_EXPONENT for exponent in _POWER.findall(answer))
        or _has_long_expansion(answer)
        or _has_tower(answer)
        or any(int(number) > MAX_FACTORIAL for number in _FACTORIAL.findall(answer))
        or _REPEATED_FACTORIAL.search(answer) is not None
        or any(int(end) > MAX_TERMS for end in _SUM_TO.findall(answer))
    )


def _depth(answer: str) -> int:
    depth = deepest = 0
    for letter in answer:
        if letter in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")}]":
            depth -= 1
    return deepest


def _has_long_expansion(answer: str) -> bool:
    """Whether SymPy may multiply out a high power of a bracket that holds letters."""
    high = any(int(exponent) > MAX_EXPONENT_OF_SUM for exponent in _POWER_OF_BRACKET.findall(answer))
    return high and _VARIABLE.search(answer) is not None


def _has_tower(answer: str) -> bool:
    """Whether an exponent is itself a power above the bound, `9^{9^9}`, or a tower of more floors."""
    return any(
        higher or int(exponent) * math.log10(int(number) or 1) > math.log10(MAX_EXPONENT)
        for number, exponent, higher in _POWER_ABOVE.findall(answer)
    )
