"""Grade a run's solutions anew: python pipeline/grade.py --help"""

from mathmill.stages import grade

if __name__ == "__main__":
    grade.main()
