"""The pictures of README.md: python -m tests.evaluation.pictures (minutes; needs Debian's chromium)

The bundled model is evaluated twice, at the usual temperature and at one that is too high, so that there is something to see.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.evaluation.browser import browser, photograph

REPO = Path(__file__).resolve().parents[2]
RUNS = {"words-usual": 0.7, "words-hot": 1.5}
WIDTH = 1180


def run(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, REPO / "pipeline" / f"{name}.py", *arguments], check=True, env=os.environ)


def main() -> None:
    for name, temperature in RUNS.items():
        run("run_evaluation", "--benchmarks", "words:8", "--temperature", str(temperature), "--run", name)
    run("summarize_results", *RUNS)
    report = Path("runs", next(iter(RUNS)), "report").resolve()
    with browser(WIDTH, 1000) as driver:
        driver.get((report / "index.html").as_uri())
        photograph(driver, REPO / "docs" / "report.png", 1260)
        driver.get(f"{(report / 'problems-2-words.html').as_uri()}#split")
        shown = next(each for each in driver.find_elements("css selector", "details.problem") if each.is_displayed())
        shown.find_element("css selector", "summary").click()
        photograph(driver, REPO / "docs" / "problem.png", 860)


if __name__ == "__main__":
    main()
