"""A headless Chromium for the tests of pages; they are skipped where there is none."""

import shutil
import time

import pytest


def start(folder):
    """A browser that downloads into a folder, browser.down."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium with its driver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1300,900"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.down = folder
    return browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = start(tmp_path_factory.mktemp("down"))
    yield browser
    browser.quit()


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
