"""Solve one question and show its code and output as they come: python pipeline/solve.py "A train …" """

from mathmill.stages import solve

if __name__ == "__main__":
    solve.main()
