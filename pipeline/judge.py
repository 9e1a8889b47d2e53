"""Ask a model whether a run's answers are right, beside the symbolic verdicts: python pipeline/judge.py --help"""

from mathmill.stages import judge

if __name__ == "__main__":
    judge.main()
