"""Answers: found in a text, compared, graded in killable processes. SymPy is imported where it is first needed."""

from mathmill.grading.compare import grade
from mathmill.grading.extract import extract_answer
from mathmill.grading.pool import GradingPool

__all__ = ["GradingPool", "extract_answer", "grade"]
