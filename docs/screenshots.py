"""The screenshots in docs/report.md, taken with Chromium: python -m docs.screenshots RUN [RUN...]

The first run's report.html must have slices of test subjects; with more runs, their comparison is shown too.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from experiments.given_rows import parse_rows
from reporting.comparison import write_comparison
from utils import atomic_path

HERE = Path(__file__).resolve().parent
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium with an empty profile, which records its console and its network requests."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def show(driver: webdriver.Chrome, page: Path, width: int = 1200, dark: bool = False, sharpness: float = 1) -> None:
    """Open a page at a width in CSS pixels, light or dark."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": sharpness, "mobile": False},
    )
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get(page.resolve().as_uri())
    # Pictures are decoded and sizes are observed after loading.
    driver.execute_async_script(
        "const done = arguments[0]; const wait = () => document.images.length === [...document.images].filter("
        "(i) => i.complete).length ? requestAnimationFrame(() => setTimeout(done, 150)) : setTimeout(wait, 30); wait();"
    )


def shoot(driver: webdriver.Chrome, path: Path, first: str = "body", last: str | None = None) -> None:
    """Write a PNG from the top of the element `first` to the bottom of `last` (CSS selectors), as wide as the page."""
    top, bottom, width = driver.execute_script(
        "const box = (s) => document.querySelector(s).getBoundingClientRect();"
        "return [box(arguments[0]).top + scrollY, box(arguments[1]).bottom + scrollY, innerWidth]",
        first,
        last or first,
    )
    margin = 0 if first == "body" else 24
    clip = {"x": 0, "y": max(0, top - margin), "width": width, "height": bottom - top + 2 * margin, "scale": 1}
    driver.execute_async_script("setTimeout(arguments[0], 300)")  # pictures that came with a click are decoded
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    with atomic_path(path) as temporary:
        temporary.write_bytes(base64.b64decode(shot["data"]))


def main(runs: list[Path], out: Path = HERE) -> None:
    page = runs[0] / "report.html"
    middle = "const s = document.getElementById('slice'); s.value = s.max / 2; s.dispatchEvent(new Event('input'))"
    with browser() as driver:
        show(driver, page)
        shoot(driver, out / "report-scores.png", "header", "#scores")
        show(driver, page, dark=True)
        driver.execute_script(middle)
        shoot(driver, out / "report-slices-dark.png", "#slices")
        show(driver, page, 680, dark=True)
        shoot(driver, out / "report-inside-dark.png", "#inside")
        show(driver, page, 360)
        driver.execute_script(middle)
        shoot(driver, out / "report-phone.png", "#slices")
        if len(runs) > 1:
            with tempfile.TemporaryDirectory() as folder:
                show(driver, write_comparison(parse_rows([str(run) for run in runs]), Path(folder)))
                shoot(driver, out / "report-comparison.png")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
