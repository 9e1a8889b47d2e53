"""Words between and behind expressions, which SymPy's reader drops."""

import re
from collections.abc import Callable

from mathmill.grading.units import unit_name

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_BETWEEN_ITEMS = re.compile(r"\s*,?\s*(?:and|or)?\s*,?\s*")
_CONNECTIVE = re.compile(r"(?<![A-Za-z])(and|or)(?![A-Za-z])")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?![a-z])")
_PRIMES = re.compile(r"(?<=[A-Za-z])'+|\\prime")
_SPACE = re.compile(r"\\[ ,;:!]|~|\s+")
_MORE_WORDS = "or more fewer less least most than remainder increase decrease odd even not except only"
_SAYS_MORE = frozenset(_MORE_WORDS.split())
"""Behind a number these change what it says; other words are units and names of things."""


def words_differ(predicted: str, expected: str, same: Callable[[str, str], bool]) -> bool:
    """Whether words that a reader drops tell the answers apart: between two expressions, or of weight behind one.

    `and` beside `or` between inequalities, and primes (`f'` beside `f`), count as words.
    """
    if _primes(predicted) != _primes(expected) or joined_otherwise(predicted, expected):
        return True
    mine, theirs = _pieces(predicted), _pieces(expected)
    if _has_inner_words(mine) or _has_inner_words(theirs):
        return len(mine) != len(theirs) or not all(
            one == other or (place % 2 == 0 and same(one, other))
            for place, (one, other) in enumerate(zip(mine, theirs, strict=True))
        )
    one, other = _last_words(mine), _last_words(theirs)
    if one and other:
        return one != other
    return not _SAYS_MORE.isdisjoint((one + other).split())


def joined_otherwise(predicted: str, expected: str) -> bool:
    """Whether one joins inequalities by `and`, the other by `or`."""
    if not (_RELATION.search(predicted) and _RELATION.search(expected)):
        return False
    one, other = (set(_CONNECTIVE.findall(answer)) for answer in (predicted, expected))
    return bool(one and other) and one != other


def _primes(answer: str) -> int:
    return sum(found.count("'") or 1 for found in _PRIMES.findall(_TEXT.sub("", answer)))


def _pieces(answer: str) -> list[str]:
    """Expressions (even places) and the words between and behind them (odd); what joins items of a list is no word."""
    parts = _TEXT.split(answer)
    found = [_SPACE.sub(" ", parts[0]).strip()]
    for text, expression in zip(parts[1::2], parts[2::2], strict=True):
        expression = _SPACE.sub(" ", expression).strip()
        if _BETWEEN_ITEMS.fullmatch(text):
            found[-1] = f"{found[-1]}, {expression}"
        else:
            found += [unit_name(text), expression]
    return found


def _has_inner_words(pieces: list[str]) -> bool:
    """Whether words stand between two expressions."""
    return any(pieces[place - 1] and pieces[place + 1] for place in range(1, len(pieces), 2))


def _last_words(pieces: list[str]) -> str:
    """The words behind the only expression."""
    return pieces[-2] if len(pieces) > 1 and not pieces[-1] else ""
