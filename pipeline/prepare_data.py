"""Make typed problems of a benchmark's published form: python pipeline/prepare_data.py --help"""

from mathmill.stages import prepare_data

if __name__ == "__main__":
    prepare_data.main()
