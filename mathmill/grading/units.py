"""Names of units: which words are one, and which of them are the same."""

_NO_UNIT_WORDS = "and or to pi sqrt log ln sin cos tan half third quarter percent mod factorial base negative"
NO_UNIT = frozenset(_NO_UNIT_WORDS.split())
MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SPELLINGS = {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "g": "gram", "kg": "kilogram kilo", "mg": "milligram", "l": "liter litre", "ml": "milliliter millilitre",
    "s": "second sec", "min": "minute", "h": "hour hr", "ft": "foot feet", "in": "inch inche", "yd": "yard",
    "degree": "deg", "mi": "mile", "lb": "pound", "oz": "ounce", "am": "", "pm": "",
}  # fmt: skip
_SHORT = {long: short for short, spellings in _SPELLINGS.items() for long in spellings.split()}
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
SHORT_UNITS = frozenset(_SPELLINGS)
ONE_LETTER = "mghsLl"
"""Letters that are a unit behind a number and a space."""


def unit_name(words: str) -> str:
    """One name for the spellings of a unit: `square Centimeters` is `cm^2`, `p.m.` is `pm`, `apples` is `apple`."""
    found = [*map(_one_word, words.replace("~", " ").replace(".", "").lower().split())]
    if len(found) == 2 and found[0] in _POWERS:
        return found[1] + _POWERS[found[0]]
    return " ".join(found)


def powered(unit: str, power: str | None) -> str:
    """The unit with the exponent that stands behind its text: `cm` and `^{2}` are `cm^2`."""
    return f"{unit}^{power.strip('^{}')}" if power and unit else unit


def _one_word(word: str) -> str:
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    return _SHORT.get(word) or _SHORT.get(singular) or singular


def split_multiplier(unit: str) -> tuple[int, str]:
    """`million dollar` is a million and the unit `dollar`."""
    first, _, rest = unit.partition(" ")
    return (MULTIPLIERS[first], rest) if first in MULTIPLIERS else (1, unit)
