"""Write checkpoints of a training as Hugging Face folders: python pipeline/export_checkpoint.py --help"""

from mathmill.stages import export_checkpoint

if __name__ == "__main__":
    export_checkpoint.main()
