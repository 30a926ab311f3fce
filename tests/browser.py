"""A headless Chromium for the tests of pages; they are skipped where there is none."""

import time
from contextlib import contextmanager

import pytest

from common.files import BadInput


@pytest.fixture(scope="session")
def one_browser(tmp_path_factory):
    """The one browser of a session; it downloads into a folder, browser.down."""
    pytest.importorskip("selenium.webdriver")
    from rvebench.bench import start_browser
    folder = tmp_path_factory.mktemp("down")
    try:
        browser = start_browser(**{"download.default_directory": str(folder)})
    except BadInput as error:
        pytest.skip(str(error))
    browser.down = folder
    yield browser
    browser.quit()


@pytest.fixture
def browser(one_browser):
    """The browser with an empty page, without the errors of other tests."""
    one_browser.get("about:blank")
    one_browser.get_log("browser")
    return one_browser


def until(browser, script, seconds=60):
    """The value of a script once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, seconds).until(lambda b: b.execute_script(f"return {script}"))


def downloaded(browser, name):
    """The file of that name, once the browser has it; the next download has the name to itself."""
    file = browser.down / name
    for _ in range(300):
        if file.exists():
            return file.rename(file.with_name(f"{time.monotonic_ns()}-{name}"))
        time.sleep(.1)
    raise AssertionError(f"{name} was not downloaded")


def errors(browser):
    """What went wrong on the page."""
    return [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]


def press(browser, *keys):
    """Press keys, wherever the focus is."""
    from selenium.webdriver.common.action_chains import ActionChains
    ActionChains(browser).send_keys(*keys).perform()


@contextmanager
def screen(browser, width, scheme):
    """A screen of this width, in light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Texts that are seen, and their contrast, where it is below 4.5 : 1 (WCAG AA).
LOW_CONTRAST = r"""
    const light = rgb => { const [r, g, b] = rgb.map(x => { x /= 255;
      return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4 });
      return .2126 * r + .7152 * g + .0722 * b };
    const rgb = text => text.match(/[\d.]+/g).map(Number);
    const ground = e => { for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor); if (c.length == 3 || c[3] == 1) return c.slice(0, 3) }
      return [255, 255, 255] };
    const found = [];
    for (const e of document.querySelectorAll('body *')) {
      const own = [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
      if (!own || !e.checkVisibility() || e.closest('script, svg, option')) continue;
      const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(ground(e))].sort((x, y) => y - x);
      if ((a + .05) / (b + .05) < 4.5) found.push([e.outerHTML.slice(0, 90), (a + .05) / (b + .05)]) }
    return found
"""


def check_readable(browser, width):
    """Every text has enough contrast, and nothing but tables is wider than the screen."""
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(LOW_CONTRAST) == []
