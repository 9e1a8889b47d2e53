"""Equality by math-verify and SymPy: slow, and only ever to be run in a process that can be killed."""

import logging
import re
from functools import lru_cache
from typing import Any

from antlr4 import PredictionMode
from latex2sympy2_extended import latex2sympy2
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    PSParser,
    latex2sympy,
    normalize_latex,
)
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import (
    Abs,
    Derivative,
    Eq,
    Expr,
    FiniteSet,
    Float,
    I,
    Integral,
    Interval,
    Limit,
    MatrixBase,
    Max,
    Min,
    Mod,
    Mul,
    Piecewise,
    Product,
    Rational,
    Sum,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    ceiling,
    floor,
    together,
)
from sympy import sign as sign_function
from sympy.core.evalf import PrecisionExhausted
from sympy.core.function import AppliedUndef

logging.getLogger("math_verify").setLevel(logging.ERROR)

KNOWN_EXPRESSIONS = 4096
"""Parsed answers that are kept: the expected answer of a problem is asked for with every sample."""
DIGITS = 30
FAR = 1e-4
"""Relative: values that differ by more are different, also where one of them is a rounded decimal."""
NEAR = 1e-12
"""Relative: what holds no decimal is different where it differs by more."""
LEAST_ROUNDING = 2e-6
"""Absolute: math-verify compares decimals after rounding them to six digits."""
POINTS = ((1.0, 0.6180339887), (-1.375, 0.7548776662))
"""Where expressions are evaluated. Of each: what every variable's own coordinate is multiplied by, and what makes it from the
name; were the points multiples of each other, `y = 2x` and `y = 3x` would look alike."""

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_PYTHON_POWER = re.compile(r"\*\*\s*(?:(-?[A-Za-z0-9.]+)|\(([^()]*)\))")
_ONE_DIGIT_POWER = re.compile(r"\^\s*([0-9])(?![0-9.])")
"""With braces ANTLR's fast mode reads it."""
_OVER_A_DIGIT = re.compile(r"(\\[dtc]?frac\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})\s?([0-9])")
_NUMBER_BEHIND_BRACE = re.compile(r"\}\s?(?=[0-9])")
"""Where a fraction stands before, math-verify's normalisation takes one digit of it for a denominator: `\\frac{1}{2} 80` becomes
`\\frac{1}{2}{8}0`. It does not look beyond two spaces."""
_LAST_FACTOR = re.compile(r"(?<=[0-9)\]}])(?<!\\circ\})([A-Za-z])(?=\$?$)")
"""A letter close behind a number or a bracket: a factor, which the normalisation would drop as a unit where it is one's name."""
_BARE_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_MIXED = re.compile(r"(?<![0-9.}A-Za-z^_])([0-9]+)\s*\\frac\{([0-9]+)\}\{([0-9]+)\}")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_WORD = re.compile(r"[A-Za-z]{2,}")
_INDEX_NAMES = {"j", "k", "m", "n"}
"""Beside one of them `i` counts something; elsewhere it is the imaginary unit."""
_STEPS = (floor, ceiling, Mod, Abs, sign_function, Piecewise, Min, Max)
"""The same at two points does not mean the same everywhere."""
_NO_VALUE = (Integral, Sum, Product, Limit, Derivative, AppliedUndef, UnevaluatedExpr)
"""Costly, or unknown, or a percentage, which has two values."""


_IN_ORDER = {Tuple: list, MatrixBase: list, Interval: lambda interval: [interval.start, interval.end]}
"""What has parts in a fixed order, and how they are taken from it."""


class _TwoStageParser(PSParser):
    """The grammar's parser, first in ANTLR's fast mode, which gives the same tree or a syntax error; then in the full one.

    (ANTLR's own advice; here 2.5 times faster.)
    """

    def math(self):
        self._interp.predictionMode = PredictionMode.SLL
        try:
            return super().math()
        except (MemoryError, RecursionError):
            raise
        except Exception:
            self.reset()
            self._interp.predictionMode = PredictionMode.LL
            return super().math()


latex2sympy2.PSParser = _TwoStageParser


def equal(predicted: str, expected: str) -> bool:
    """Whether math-verify reads the two answers as equal expressions, and their values do not say otherwise.

    It may take seconds and any amount of memory: RecursionError and MemoryError come through; what else SymPy raises is a no.
    """
    return any(_equal(gold, target) for gold in _parsed(expected) for target in _parsed(predicted))


def equal_within(predicted: str, expected: str, tolerance: float) -> bool:
    """Whether both are constants that differ by at most this, relatively."""
    gold, target = _parsed(expected)[0], _parsed(predicted)[0]
    try:
        if not all(_has_value(each) and not each.free_symbols for each in (gold, target)):
            return False
        one, other = _value(gold, POINTS[0]), _value(target, POINTS[0])
    except (ValueError, TypeError, ArithmeticError):  # SymPy cannot work it out
        return False
    return one is not None and other is not None and bool(abs(one - other) <= tolerance * max(abs(one), abs(other)))


@lru_cache(KNOWN_EXPRESSIONS)
def _parsed(answer: str) -> list[Any]:
    """The expression, where math-verify's LaTeX grammar reads one (it evaluates nothing), and the text."""
    answer = _PYTHON_POWER.sub(lambda found: "^{" + (found[1] or found[2] or "") + "}", answer)
    answer = _BARE_PI.sub(r"\\pi ", answer)
    answer = _ONE_DIGIT_POWER.sub(r"^{\1}", answer)
    answer = _LAST_FACTOR.sub(r"{\1}", answer)
    if "frac" in answer:
        answer = _NUMBER_BEHIND_BRACE.sub("}  ", _OVER_A_DIGIT.sub(r"\1{\2}", answer))
    answer = normalize_latex(_MIXED.sub(_improper, answer), _NORMALIZATION)
    try:
        expression = latex2sympy(
            answer,
            is_real=not should_treat_as_complex(answer),
            convert_degrees=_TRIGONOMETRY.search(answer) is not None,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return [answer]
    return [_with_imaginary_unit(expression), answer]


def _improper(mixed: re.Match[str]) -> str:
    r"""`1\frac{1}{2}` as 3/2; inside an expression the grammar takes it for a product."""
    whole, over, under = map(int, mixed.groups())
    return rf"\frac{{{whole * under + over}}}{{{under}}}"


def _with_imaginary_unit(expression):
    if not isinstance(expression, Expr):
        return expression
    names = {symbol.name: symbol for symbol in expression.free_symbols}
    return expression.xreplace({names["i"]: I}) if "i" in names and not _INDEX_NAMES & set(names) else expression


def _equal(gold, target) -> bool:
    """By value where that tells: a difference in value is cheaper to see than to prove, and math-verify's own test of zero
    is absolute (it makes 1/2^99 equal 1/2^98). Else by math-verify."""
    try:
        verdict = _by_value(gold, target)
        if verdict is not None:
            return verdict
        if _parts_differ(gold, target):
            return False
        if isinstance(gold, Eq) and isinstance(target, Eq):
            return _same_equation(gold, target)
        if any(isinstance(each, Eq) and not _is_named(each) for each in (gold, target)):
            return False
        return verify(gold, target, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


def _by_value(gold, target) -> bool | None:
    """Whether two expressions have the same value, as constants or with numbers put in for their variables."""
    if not (_has_value(gold) and _has_value(target)):
        return None
    is_rounded = gold.has(Float) or target.has(Float)
    for point in POINTS:
        one, other = _value(gold, point), _value(target, point)
        if one is None or other is None:
            return None
        apart = abs(one - other)
        relative = apart / max(abs(one), abs(other)) if apart else 0
        if relative > (FAR if is_rounded else NEAR) and not (is_rounded and apart < LEAST_ROUNDING and relative < 0.5):
            return False
    if is_rounded and relative <= NEAR and not (gold.free_symbols or target.free_symbols):
        return True
    if is_rounded or gold.has(*_STEPS) or target.has(*_STEPS):
        return None
    difference = (gold - target).doit()
    return difference.is_zero if difference.is_Rational else not _value(difference, POINTS[0])


def _parts_differ(gold, target) -> bool:
    """Whether two points, matrices, intervals or sets have parts of different value. (SymPy would work out the difference of
    two sets, at ten times the cost.)"""
    for kind, parts_of in _IN_ORDER.items():
        if isinstance(gold, kind) and isinstance(target, kind):
            mine, theirs = parts_of(gold), parts_of(target)
            return len(mine) != len(theirs) or any(map(_differ, mine, theirs))
    if not (isinstance(gold, FiniteSet) or isinstance(target, FiniteSet)):
        return False
    mine, theirs = ([*each] if isinstance(each, FiniteSet) else [each] for each in (gold, target))
    return any(
        all(_differ(one, other) for other in others)
        for ones, others in ((mine, theirs), (theirs, mine))
        for one in ones
    )


def _differ(one, other) -> bool:
    if getattr(one, "is_infinite", None) or getattr(other, "is_infinite", None):
        return bool(one != other)
    return _by_value(one, other) is False


def _same_equation(gold: Eq, target: Eq) -> bool:
    """Whether one equation is a multiple of the other: their sides' differences have the same ratio at two points.

    Equations without values are compared as they stand. (math-verify would solve both, which may take for ever.)
    """
    one, other = gold.lhs - gold.rhs, target.lhs - target.rhs
    if not (_has_value(one) and _has_value(other)):
        return any(verify(one, each, timeout_seconds=None, raise_on_error=True) for each in (other, -other))
    if one.free_symbols != other.free_symbols:
        return False
    one, other = (together(each.doit()).as_numer_denom()[0] for each in (one, other))
    here, there = (_value(one / other, point) for point in POINTS)
    return here is not None and there is not None and bool(abs(here - there) <= NEAR * abs(here))


def _is_named(equation: Eq) -> bool:
    """Whether it names its right side: `x = 5`, `AB = 5`, `f(x) = 5`, `2 + 3 = 5`. math-verify takes any left side for that."""
    left = equation.lhs
    if not left.free_symbols:
        return bool(left.equals(equation.rhs))
    if isinstance(left, Mul):
        return all(isinstance(name, Symbol) and name.name.isupper() for name in left.args)
    return isinstance(left, (Symbol, AppliedUndef))


def _has_value(expression) -> bool:
    """Whether numbers make a number of it. A word was read as one symbol, and `e` and `E` may be a number or a letter."""
    return (
        isinstance(expression, Expr)
        and not expression.has(*_NO_VALUE)
        and not any(symbol.name in ("e", "E") or _WORD.fullmatch(symbol.name) for symbol in expression.free_symbols)
    )


@lru_cache(KNOWN_EXPRESSIONS)
def _value(expression: Expr, point: tuple[float, float]) -> Any:
    """The expression at a fixed point; None where it has no value there, or none that is told from zero.

    To tell it a hundred digits are taken, and as many more as its longest number has: sqrt((2^2009 - 1)/(3*2^2008 - 1)) is not
    sqrt(2/3), but for 605 digits it is.
    """
    values = {symbol: _coordinate(symbol.name, *point) for symbol in expression.free_symbols}
    longest = max((abs(each.p).bit_length() + each.q.bit_length() for each in expression.atoms(Rational)), default=0)
    try:
        value = expression.evalf(DIGITS, subs=values, strict=True, maxn=100 + longest)
    except PrecisionExhausted:
        return None
    return value if all(part.is_Float or part.is_Integer for part in value.as_real_imag()) else None


def _coordinate(name: str, scale: float, step: float) -> Float:
    """A number of its own for every name, between 1 and 4 before it is scaled."""
    return Float(scale * (1 + 3 * (sum(place * step * ord(letter) for place, letter in enumerate(name, 1)) % 1)))
