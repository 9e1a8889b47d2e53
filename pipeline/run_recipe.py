"""Make a whole dataset by its recipe: python pipeline/run_recipe.py --help"""

from mathmill.stages import run_recipe

if __name__ == "__main__":
    run_recipe.main()
