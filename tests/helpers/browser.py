"""A headless Chromium, for tests that use a page as its visitors do.

Debian's packages `chromium` and `chromium-driver` bring what it takes. Where they are not there
the tests are skipped, unless KERASMTL_REQUIRE_BROWSER=1 says that they must run.
"""

import base64
import contextlib
import os
import shutil
from pathlib import Path

import pytest

WAIT = 30  # seconds, for what takes moments
FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run
--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
--window-size=1000,900
""".split()


@contextlib.contextmanager
def chromium(profile):
    """A browser that knows nothing but `profile`, an empty folder; yields Selenium's driver."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        _unable("Chromium is not installed (Debian: apt install chromium chromium-driver)")
    try:
        from selenium import webdriver
    except ImportError:
        _unable("Selenium is not installed (the extra `test` has it)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # With the path given, Selenium looks for no driver and downloads none.
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


def visit(driver, url, width=None, scheme="light"):
    """Open a page: in a window of that width in CSS pixels, by a visitor who likes it so lit."""
    if width:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    else:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    complaints(driver)  # those of the page before
    driver.get(url)


def complaints(driver):
    """What the console has complained of since the last call."""
    return [said["message"] for said in driver.get_log("browser") if said["level"] != "INFO"]


def until(driver, condition, why):
    """Wait until `condition` of no arguments is true, and return what it is; fail with `why`."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = [StaleElementReferenceException]  # the page has just replaced it
    return WebDriverWait(driver, WAIT, 0.05, ignored).until(lambda _: condition(), why)


def screenshot(driver, name, folder):
    """Keep the whole page as `name`.png: in KERASMTL_ARTEFACTS if that is set, else in `folder`."""
    folder = Path(os.environ.get("KERASMTL_ARTEFACTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"format": "png", "captureBeyondViewport": True}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", whole)
    file = folder / f"{name}.png"
    file.write_bytes(base64.b64decode(taken["data"]))
    return file


def _unable(reason):
    if os.environ.get("KERASMTL_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and KERASMTL_REQUIRE_BROWSER=1 is set", pytrace=False)
    pytest.skip(reason)
