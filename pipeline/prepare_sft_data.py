"""Select solutions for training: python pipeline/prepare_sft_data.py --help"""

from mathmill.stages import prepare_sft_data

if __name__ == "__main__":
    prepare_sft_data.main()
