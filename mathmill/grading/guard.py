"""What an answer would cost in SymPy, seen from its text alone."""

import math
import re

MAX_LENGTH = 1000
MAX_DEPTH = 20
MAX_COMMANDS = 100
MAX_DIGITS = 100
MAX_BITS = 100_000
"""Of all powers of numbers in an answer, together."""
MAX_EXPONENT = 1000
"""Of what is no plain number."""
MAX_EXPONENT_OF_SUM = 40
MAX_EXPONENT_OF_ROOTS = 300
MAX_CELLS_OF_POWER = 4
"""Cells of a matrix that has an exponent."""
MAX_FACTORIAL = 3000
MAX_BINOMIAL = 5000
MAX_TERMS = 200
"""Items of a list, cells of a matrix, terms of a sum."""
MAX_ITEMS_WITH_VARIABLES = 6
"""Items of a list in which there are letters: SymPy compares each of one list with each of the other."""

_LONG_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGITS + 1},}}")
_DEEP_CALLS = re.compile(r"(?:\\(?:sqrt|frac)[^\\]{0,8}){13,}|(?:\\(?:sin|cos|tan|log|ln|exp)[^\\]{0,4}){3,}")
_BETWEEN_ITEMS = re.compile(r"(?<!\\),")
_TERM = re.compile(r",|&|\\\\|[+*/-]|\\cdot|\\times")
_POWER = re.compile(r"([0-9.]*|\))[)\]}\s]*(?:\^|\*\*)\s*[{(]?\s*\(?\s*-?\s*([0-9]+)")
_POWER_OF_BRACKET = re.compile(r"[)\]}]\s*(?:\^|\*\*)\s*\{?\s*\(?\s*-?\s*([0-9]+)")
_POWER_OF_MATRIX = re.compile(r"\\end\{[a-z]*\}[)\]}\s]*(?:\^|\*\*)")
_CELL_END = re.compile(r"&|\\\\")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_POWER_ABOVE = re.compile(
    r"(?=(?:\^|\*\*)\s*(?:\{[^{}]*?|\([^()]*?|)\s*([0-9]+)\s*(?:\^|\*\*)\s*[{(]?\s*([0-9]+)\s*((?:\^|\*\*)?))"
)
_FACTORIAL = re.compile(r"([0-9]+)\s*[)}]*\s*!")
_FACTORIAL_OF_POWER = re.compile(r"(?:\^|\*\*)[^!]{0,20}!")
_REPEATED_FACTORIAL = re.compile(r"!\s*[)}]*\s*!")
_BINOMIAL = re.compile(r"\\[dt]?binom[^0-9]*([0-9]+)|([0-9]+)\s*\}?\s*\\choose")
_BINOMIAL_OF_POWER = re.compile(r"\\[dt]?binom\s*\{[^{}]*\^|\^[^!]{0,20}\\choose|\\Gamma\s*[({]")
_RANGE = re.compile(r"\\(?:sum|prod)(?![a-z]).{0,60}?\^\s*\{?\s*([0-9]+)", re.DOTALL)
_OPEN_ENDED = re.compile(r"\\(?:i*int|oint|lim)(?![a-z])|\\(?:sum|prod)(?![a-z]).{0,60}?\\infty", re.DOTALL)
"""SymPy works out integrals, limits and infinite sums, whatever that takes."""


def too_costly(answer: str) -> bool:
    """Whether this text is to be compared as text only: long, deep, of huge numbers, powers of powers, factorials."""
    return (
        len(answer) > MAX_LENGTH
        or "\0" in answer
        or answer.count("\\") > MAX_COMMANDS
        or _depth(answer) > MAX_DEPTH
        or _LONG_DIGITS.search(answer) is not None
        or len(_TERM.findall(answer)) > MAX_TERMS
        or _DEEP_CALLS.search(answer) is not None
        or _is_long_list_of_expressions(answer)
        or _OPEN_ENDED.search(answer) is not None
        or _has_high_power(answer)
        or _has_factorial(answer)
        or any(int(end) > MAX_TERMS for end in _RANGE.findall(answer))
    )


def _is_long_list_of_expressions(answer: str) -> bool:
    many = len(_BETWEEN_ITEMS.findall(answer)) >= MAX_ITEMS_WITH_VARIABLES
    return many and _VARIABLE.search(answer) is not None


def _depth(answer: str) -> int:
    depth = deepest = 0
    for letter in answer:
        if letter in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")}]":
            depth -= 1
    return deepest


def _has_high_power(answer: str) -> bool:
    """Whether a power makes a number of too many bits, or SymPy may multiply out a high power of a bracket or matrix."""
    if "^" not in answer and "**" not in answer:
        return False
    bits = 0.0
    for number, exponent in _POWER.findall(answer):
        plain = number.strip(".").replace(".", "")
        if plain.isdigit():
            bits += int(exponent) * math.log2(max(2, int(plain)))
        elif int(exponent) > MAX_EXPONENT:
            return True
    of_bracket = max(map(int, _POWER_OF_BRACKET.findall(answer)), default=0)
    return (
        bits > MAX_BITS
        or (_POWER_OF_MATRIX.search(answer) is not None and len(_CELL_END.findall(answer)) >= MAX_CELLS_OF_POWER)
        or (of_bracket > MAX_EXPONENT_OF_ROOTS and r"\sqrt" in answer)
        or (of_bracket > MAX_EXPONENT_OF_SUM and _VARIABLE.search(answer) is not None)
        or any(
            # an exponent is itself a power, `9^{9^9}`, or a tower of more floors
            higher or int(exponent) * math.log10(int(number) or 1) > math.log10(MAX_EXPONENT)
            for number, exponent, higher in _POWER_ABOVE.findall(answer)
        )
    )


def _has_factorial(answer: str) -> bool:
    """Whether a factorial or a binomial coefficient is of a large number, of a power or of another factorial."""
    return (
        any(int(number) > MAX_FACTORIAL for number in _FACTORIAL.findall(answer))
        or _REPEATED_FACTORIAL.search(answer) is not None
        or _FACTORIAL_OF_POWER.search(answer) is not None
        or any(int(one or other) > MAX_BINOMIAL for one, other in _BINOMIAL.findall(answer))
        or _BINOMIAL_OF_POWER.search(answer) is not None
    )
