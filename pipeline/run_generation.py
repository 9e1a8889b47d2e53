"""Sample solutions for a set of problems: python pipeline/run_generation.py --help"""

from mathmill.stages import generation

if __name__ == "__main__":
    generation.main()
