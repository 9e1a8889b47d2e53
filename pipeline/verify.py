"""Whether a run is what it says: every row once, whole, as its set says: python pipeline/verify.py --help"""

from mathmill.stages import verify

if __name__ == "__main__":
    verify.main()
