"""Stop a run's jobs for good: python pipeline/cancel.py --help"""

from mathmill.stages import cancel

if __name__ == "__main__":
    cancel.main()
