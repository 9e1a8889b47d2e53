"""Fine-tune a model on a training set: python pipeline/run_sft.py --help"""

from mathmill.stages import sft

if __name__ == "__main__":
    sft.main()
