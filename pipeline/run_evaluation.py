"""Evaluate a model on benchmarks, greedy and sampled, as one array: python pipeline/run_evaluation.py --help"""

from mathmill.stages import evaluation

if __name__ == "__main__":
    evaluation.main()
