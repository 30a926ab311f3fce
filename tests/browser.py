"""A headless Chromium for the tests of pages; they are skipped where there is none."""

import time

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
