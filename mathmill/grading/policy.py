"""What counts as the same answer, by name."""

from dataclasses import dataclass

from mathmill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which marks around a number may be missing on one side. Marks that are there on both sides must agree."""

    units: bool
    """`5\\text{ cm}` or `5 apples` is 5."""
    percent: bool
    """`50%` is 50, and 0.5."""
    currency: bool
    """`\\$5` is 5."""


POLICIES = {
    "default": Policy(units=True, percent=True, currency=True),
    "strict": Policy(units=False, percent=False, currency=False),
}


def policy_named(name: str) -> Policy:
    """The policy of this name; a UserError that lists the known ones for any other."""
    if name not in POLICIES:
        raise UserError(f"no grading policy '{name}'. Known: {', '.join(sorted(POLICIES))}")
    return POLICIES[name]
