"""Benchmarks become problems: `load` reads prepared ones and users' files, `prepare` makes them of a published form."""

from mathmill.problems.load import data_folder, evenly_spaced, load_problems

__all__ = ["data_folder", "evenly_spaced", "load_problems"]
