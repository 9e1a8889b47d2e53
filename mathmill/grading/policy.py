"""What counts as the same answer, by name."""

from dataclasses import dataclass

from mathmill.errors import UserError

LEAST_ROUNDED_DIGITS = 6
"""Digits after the point from which on a decimal may stand for a number that it only approaches."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which differences are none. Marks that are there on both sides must agree under every policy."""

    units: bool = True
    """`5\\text{ cm}` or `5 apples` is 5."""
    percent: bool = True
    """`50%` is 50, and 0.5; otherwise it is 0.5 alone."""
    currency: bool = True
    """`\\$5` is 5."""
    decimal_digits: int | None = LEAST_ROUNDED_DIGITS
    """A decimal with at least so many digits, after the point and in all, also is a number that it rounds or cuts;
    None: never."""
    any_order: bool = True
    """A list that stands without brackets in the expected answer may come in any order."""
    ignore_case: bool = True
    """`Monday` is `monday`. Single letters are variables and keep their case."""
    published: bool = False
    """Decide as the published OpenMathInstruct-1 pipeline did (`omi1.py`); all other fields say nothing then."""


POLICIES = {
    "default": Policy(),
    "strict": Policy(
        units=False, percent=False, currency=False, decimal_digits=None, any_order=False, ignore_case=False
    ),
    "omi1": Policy(published=True),
}


def policy_named(name: str) -> Policy:
    """The policy of this name; a UserError that lists the known ones for any other."""
    if name not in POLICIES:
        raise UserError(f"no grading policy '{name}'. Known: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]
