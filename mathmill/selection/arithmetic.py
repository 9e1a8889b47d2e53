"""Plain arithmetic in a text, `48 / 2 = 24`, checked by a small reader of its own: text is never evaluated as code."""

import re
from fractions import Fraction

TOLERANCE = Fraction(1, 10_000)
"""Relative, as published (spec of OpenMathInstruct-2, 2.2)."""
MOST_DIGITS = 40
LARGEST_POWER = 64

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_OPERATOR = r"\*\*|[-+−*×·/÷^]|\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|\\div(?![A-Za-z])"
_RUN = re.compile(r"(?:[0-9.,+\-−*×·/÷^()= \t$]|\\(?:times|cdot|div)(?![A-Za-z])|\\\$)+")
"""A stretch of text in which nothing but arithmetic stands; each letter is looked at once."""
_SENTENCE_END = re.compile(r"[.,](?:[ \t]+|$)")
_CODE = re.compile(r"<llm-code>.*?(?:</llm-code-output>|$)", re.DOTALL)
_TOKEN = re.compile(rf"[ \t]*(?:\\?\$)*[ \t]*({_NUMBER}|{_OPERATOR}|[()])[ \t]*(?:\\?\$)*[ \t]*")
_SPELLINGS = {"−": "-", "×": "*", "·": "*", r"\times": "*", r"\cdot": "*", "÷": "/", r"\div": "/", "**": "^"}
_OPENS_BEFORE = re.compile(r"(?:[\w}\])!|%°]|\\[A-Za-z]+|\b(?:of|times|plus|minus|over|by|[b-zB-HJ-Z])[ \t$]*)$")
"""What stands before a first side of which it is a part: `2x + 3 = 5`, `half of 8 + 2 = 6`, `3 x 4 + 2 = 14`."""
_GOES_ON = re.compile(r"[\w{\[!%°|]|\\(?!text|mathrm|mbox|quad|\\|\]|\)|,|;| )")
_GOES_ON_APART = re.compile(r"(?:x|times|percent|mod|less|more)\b|%")
"""What stands after a last side of which it is a part: `2 + 3 = 5x`, `= 5\\pi`."""


class NotArithmeticError(Exception):
    """The text is no arithmetic that can be told: nothing is said about it."""


def wrong_arithmetic(text: str) -> str | None:
    """The first chain `a op b = c` of plain numbers in the text, outside its code, whose sides differ; None for none.

    Sides that cannot be read, or to which something belongs that is no arithmetic, say nothing.
    """
    if "=" not in text:
        return None
    words = _CODE.sub("\n", text)
    for run in _RUN.finditer(words):
        if "=" in run[0]:
            before, after = words[max(0, run.start() - 20) : run.start()], words[run.end() : run.end() + 20]
            for chain in _SENTENCE_END.split(run[0]):
                sides = _sides(
                    chain, before if run[0].startswith(chain) else "", after if run[0].endswith(chain) else ""
                )
                if _differ(sides):
                    return chain.strip()
    return None


def _sides(chain: str, before: str, after: str) -> list[str]:
    """The sides of a chain, without those that begin before it or go on after it."""
    sides = [side.strip() for side in chain.split("=")]
    opens = _OPENS_BEFORE.search(before + chain[: len(chain) - len(chain.lstrip(" \t$"))])
    if not sides[0] or opens or (re.match(_OPERATOR, sides[0]) and sides[0][0] not in "-−"):
        sides = sides[1:]
    elif re.match(_OPERATOR, sides[0]) and before.rstrip()[-1:] not in ("", ":", "(", "\n"):
        sides = sides[1:]  # a minus after something is a difference, not a sign
    if sides and (not sides[-1] or (_GOES_ON_APART if chain[-1:] in " \t" else _GOES_ON).match(after)):
        sides = sides[:-1]
    return sides


def _differ(sides: list[str]) -> bool:
    if len(sides) < 2 or not any(map(_is_operation, sides)):  # `3 = 3` computes nothing
        return False
    try:
        first, *others = map(value, sides)
    except NotArithmeticError:
        return False
    return any(abs(first - other) > TOLERANCE * max(abs(first), abs(other)) for other in others)


def _is_operation(side: str) -> bool:
    return any(token not in "()" and not token[0].isdigit() and token[0] != "." for token in _TOKEN.findall(side)[1:])


def value(text: str) -> Fraction:
    """The exact value of `2 * (3 + 4.5)^2`. Raises NotArithmeticError for anything but plain numbers and operators."""
    tokens, position = [], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            if text[position:].strip():
                raise NotArithmeticError
            break
        tokens.append(_SPELLINGS.get(found[1], found[1]))
        position = found.end()
    reader = _Reader(tokens)
    result = reader.sum(0)
    if reader.place != len(tokens):
        raise NotArithmeticError
    return result


class _Reader:
    """Reads sums of products of powers; depth and sizes are bounded."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.place = tokens, 0

    def sum(self, depth: int) -> Fraction:
        total = self._product(depth)
        while self._next() in ("+", "-"):
            total += self._product(depth) if self._take() == "+" else -self._product(depth)
        return total

    def _product(self, depth: int) -> Fraction:
        product = self._signed(depth)
        while self._next() in ("*", "/"):
            if self._take() == "*":
                product *= self._signed(depth)
            else:
                divisor = self._signed(depth)
                if not divisor:
                    raise NotArithmeticError
                product /= divisor
        return product

    def _signed(self, depth: int) -> Fraction:
        sign = 1
        while self._next() in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        return sign * self._power(depth)

    def _power(self, depth: int) -> Fraction:
        number = self._atom(depth)
        if self._next() != "^":
            return number
        self._take()
        exponent = self._atom(depth)
        if exponent.denominator != 1 or not 0 <= exponent <= LARGEST_POWER:
            raise NotArithmeticError
        return self._bounded(number ** int(exponent))

    def _atom(self, depth: int) -> Fraction:
        token = self._take()
        if token == "(" and depth < 20:
            inner = self.sum(depth + 1)
            if self._take() != ")":
                raise NotArithmeticError
            return inner
        if not (token[:1].isdigit() or token[:1] == ".") or len(token) > MOST_DIGITS:
            raise NotArithmeticError
        return Fraction(token.replace(",", ""))

    def _bounded(self, number: Fraction) -> Fraction:
        if max(number.numerator.bit_length(), number.denominator.bit_length()) > 4096:
            raise NotArithmeticError
        return number

    def _next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self) -> str:
        token = self._next()
        self.place += 1
        return token
