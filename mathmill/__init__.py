"""mathmill: maths problems into graded solutions, training data and fine-tuned models, on Slurm."""

__version__ = "0.1.0"
