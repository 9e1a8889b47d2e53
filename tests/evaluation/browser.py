"""A real headless browser for the tests and the pictures of the report: Debian's chromium, driven by its chromedriver."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

NO_BROWSER = "no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)"


def is_there() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator:
    """A selenium driver of a headless chromium of its own, with this window (CSS pixels)."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def photograph(driver, path: Path, height: int | None = None) -> None:
    """The page as a PNG: the window's size, or as high as this many CSS pixels (0: the whole page)."""
    if height is not None:
        full = height or driver.execute_script("return document.documentElement.scrollHeight")
        driver.set_window_size(driver.get_window_size()["width"], full)
    driver.save_screenshot(str(path))
