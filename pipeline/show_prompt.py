"""Print the exact text that a model gets for a problem: python pipeline/show_prompt.py --help"""

from mathmill.stages import show_prompt

if __name__ == "__main__":
    show_prompt.main()
