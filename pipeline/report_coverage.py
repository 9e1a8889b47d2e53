"""Report a run's coverage: python pipeline/report_coverage.py --help"""

from mathmill.stages import report_coverage

if __name__ == "__main__":
    report_coverage.main()
