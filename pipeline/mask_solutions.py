"""Mask the reference solutions of problems: python pipeline/mask_solutions.py --help"""

from mathmill.stages import mask_solutions

if __name__ == "__main__":
    mask_solutions.main()
