"""Tables and a report of one or more evaluated runs: python pipeline/summarize_results.py --help"""

from mathmill.stages import summarize_results

if __name__ == "__main__":
    summarize_results.main()
