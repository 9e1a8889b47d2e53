"""Imported by the process that forks the workers: SymPy is there for all of them, its environment hidden."""

import mathmill.grading.symbolic  # noqa: F401
from mathmill.parent import hide_environment

hide_environment()
