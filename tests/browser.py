"""A headless Chromium for the tests of pages; they are skipped where there is none."""

import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture(scope="session")
def one_browser(tmp_path_factory):
    """The one browser of a session; it downloads into a folder, browser.down."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no Chromium with its driver (Debian: apt install chromium-driver)")
    folder = tmp_path_factory.mktemp("down")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=1300,900"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.down = folder
    yield browser
    browser.quit()


@pytest.fixture
def browser(one_browser):
    """The browser with an empty page; at the end of a test nothing has gone wrong on its pages."""
    one_browser.get("about:blank")
    one_browser.get_log("browser")                       # of the test before
    yield one_browser
    assert not [x for x in one_browser.get_log("browser") if x["level"] == "SEVERE"]


def until(browser, script, seconds=60):
    """The value of a script once it is true."""
    return WebDriverWait(browser, seconds).until(lambda b: b.execute_script(f"return {script}"))


def text(browser, selector):
    """What is seen of an element."""
    return browser.find_element("css selector", selector).text


def texts(browser, selector):
    return [element.text for element in browser.find_elements("css selector", selector)]


def click(browser, selector):
    browser.find_element("css selector", selector).click()


def downloaded(browser, name):
    """The file of that name, once the browser has it; the next download has the name to itself."""
    file = browser.down / name
    WebDriverWait(browser, 30).until(lambda b: file.exists())
    return file.rename(file.with_name(f"{time.monotonic_ns()}-{name}"))


def press(browser, *keys):
    """Press keys, wherever the focus is."""
    ActionChains(browser).send_keys(*keys).perform()
