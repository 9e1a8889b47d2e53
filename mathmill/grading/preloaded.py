"""Imported by the process that forks the workers: SymPy is there for all of them, its reader warm, its environment hidden."""

from mathmill.grading.symbolic import equal
from mathmill.parent import hide_environment

hide_environment()
for answer in (r"\frac{x^{2}+1}{2y}", r"3\sqrt{2}-\pi", r"(\frac{1}{2},-3]", r"2x+3y=6", r"\{1,\sqrt{2}\}", "x>2"):
    equal(answer, answer.replace("2", "2+0"))  # fills the tables that ANTLR's parser makes as it goes
