"""Average exported checkpoints into one model: python pipeline/average_checkpoints.py --help"""

from mathmill.stages import average_checkpoints

if __name__ == "__main__":
    average_checkpoints.main()
