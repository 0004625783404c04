"""Pages in a real browser: what they show, and keys and buttons pressed in them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
if importlib.util.find_spec("selenium") is None:
    MISSING.append("selenium")
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} here (.ci/run installs them)")


def show(browser: Any, page: Path, **options: Any) -> None:
    """Open a page; from here on, its messages and requests are kept."""
    from docs.screenshots import show

    browser.get("about:blank")  # the browser's own first page has requests
    browser.get_log("browser")
    browser.get_log("performance")
    show(browser, page, **options)


def check_silence(browser: Any, page: Path) -> None:
    """Nothing on the console, and no request but for the page itself."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} == {page.resolve().as_uri()}


def texts(browser: Any, selector: str) -> list[list[str]]:
    """The cells of a table's rows."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tr')].map((row) =>"
        "[...row.cells].map((cell) => cell.textContent.trim()))", selector
    )  # fmt: skip


def press(browser: Any, selector: str, text: str) -> None:
    """Click the first button that holds the text."""
    browser.execute_script(
        "[...document.querySelectorAll(arguments[0])].find((b) => b.textContent.includes(arguments[1])).click()",
        selector, text,
    )  # fmt: skip


def wait_for(browser: Any, selector: str, count: int) -> list[str]:
    """The texts of the elements of a selector, as soon as there are so many."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
    WebDriverWait(browser, 10).until(lambda page: len(page.execute_script(script, selector)) == count)
    return browser.execute_script(script, selector)


def type_key(browser: Any, name: str) -> None:
    """A key pressed in what has the focus."""
    from selenium.webdriver import ActionChains, Keys

    ActionChains(browser).send_keys(getattr(Keys, name)).perform()


def pixels(browser: Any) -> str:
    """The picture of the slice viewer."""
    return browser.execute_script("return document.querySelector('canvas').toDataURL()")


def decoded(browser: Any, k: int, kind: str) -> np.ndarray:
    """What the page's own `unpack` makes of a mask: (slices, H, W)."""
    values = browser.execute_async_script(
        "const [k, kind, done] = arguments; unpack(data.viewer.subjects[k][kind]).then((v) => done([...v]))", k, kind
    )
    size = browser.execute_script("return data.viewer.subjects[arguments[0]].size", k)
    return np.array(values, np.uint8).reshape(-1, *size)


def least_contrast(browser: Any) -> float:
    """WCAG's contrast of each element with text of its own against what is behind it; the least of them."""
    pairs = browser.execute_script(
        """
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const rgba = (color) => {
          canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data];
        };
        const behind = (element) => {
          for (let e = element; e; e = e.parentElement) {
            const color = rgba(getComputedStyle(e).backgroundColor);
            if (color[3] === 255) return color;
          }
        };
        const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        return [...document.querySelectorAll('body *')].filter((e) => own(e) && e.getClientRects().length
          && !['SCRIPT', 'STYLE', 'NOSCRIPT', 'TITLE', 'title', 'OPTION'].includes(e.tagName)).map((e) => {
            const style = getComputedStyle(e);
            return [rgba(e instanceof SVGElement ? style.fill : style.color), behind(e)];
          });
        """
    )
    assert len(pairs) > 20
    lights = [sorted((_luminance(text), _luminance(ground))) for text, ground in pairs]
    return min((high + 0.05) / (low + 0.05) for low, high in lights)


def _luminance(color: list[int]) -> float:
    channels = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
