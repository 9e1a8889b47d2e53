"""Answers that are called wrong and look so much like the expected one that somebody should look."""

import re

NEAR = 0.01
"""Relative difference of two numbers."""
_EDGE_BEFORE, _EDGE_AFTER = r"(?<![\w.,/^{\\-])", r"(?![\w.,/^}])"


def near_miss(predicted: str | None, expected: str | None) -> str | None:
    """Why a wrong answer is worth a look: a number that may be rounded, or the expected answer among other signs.

    None where it is not.
    """
    if predicted is None or expected is None:
        return None
    one, other = _number(predicted), _number(expected)
    if one is not None and other is not None:
        rounded = not (one.is_integer() and other.is_integer())
        close = rounded and abs(one - other) <= NEAR * abs(other)
        return f"the answer differs from the expected one by less than {NEAR:.0%}" if close else None
    short, long = sorted((_squeezed(predicted), _squeezed(expected)), key=len)
    if short and len(long) <= 300 and re.search(_EDGE_BEFORE + re.escape(short) + _EDGE_AFTER, long):
        return "one of answer and expected answer stands within the other"
    return None


def _squeezed(text: str) -> str:
    return re.sub(r"\\[,;! ]|[\s$]", "", text.strip().strip("$").rstrip(".").lower())


def _number(text: str) -> float | None:
    try:
        return float(text.strip().strip("$").replace(",", ""))
    except ValueError:
        return None
