"""Equality by math-verify and SymPy: slow, and only ever to be run in a process that can be killed."""

import logging
import re

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic

logging.getLogger("math_verify").setLevel(logging.ERROR)

_EXTRACTION = [
    LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="last", equations=False
        ),
    )
]
_PYTHON_POWER = re.compile(r"\*\*\s*(?:(-?[A-Za-z0-9.]+)|\(([^()]*)\))")
_BARE_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")


def equal(predicted: str, expected: str) -> bool:
    """Whether math-verify reads the two answers as equal expressions.

    It may take seconds, any amount of memory, and raise anything: RecursionError and MemoryError come through.
    """
    gold, target = _parsed(expected), _parsed(predicted)
    return any(_equal(one, other) for one in gold for other in target)


def _parsed(answer: str) -> list:
    """Parsed expression and text, by math-verify's LaTeX path, which evaluates nothing."""
    answer = _PYTHON_POWER.sub(lambda found: "^{" + (found[1] or found[2] or "") + "}", answer)
    answer = _BARE_PI.sub(r"\\pi ", answer)
    return parse("\\boxed{" + answer + "}", _EXTRACTION, parsing_timeout=None)


def _equal(gold, target) -> bool:
    try:
        return verify(gold, target, timeout_seconds=None, raise_on_error=True) and not _far_apart(gold, target)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


def _far_apart(gold, target) -> bool:
    """Whether two constants that math-verify finds equal differ relatively: it asks whether their difference is below
    an absolute bound, which makes 1/2^99 equal 1/2^98."""
    if not (isinstance(gold, Basic) and isinstance(target, Basic) and gold.is_number and target.is_number):
        return False
    one, other = gold.evalf(30), target.evalf(30)
    if not (one.is_Float and other.is_Float) or not (one and other):
        return False
    ratio = abs(one / other)
    return not any(abs(ratio / scale - 1) < 1e-4 for scale in (1, 100, 0.01))
