"""A real, headless Chromium, driven through chromedriver; nothing is downloaded for it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 90
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


def executables() -> tuple[str, str] | None:
    """Paths of Chromium and chromedriver; None where they are not both there."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator["Browser"]:
    """A browser with an empty profile and a folder for downloads, for the length of a block."""
    found = executables()
    assert found is not None
    os.environ["SE_OFFLINE"] = "true"
    options = ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", *flags):
        options.add_argument(flag)
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(found[1]))
    driver.set_page_load_timeout(SECONDS)
    try:
        yield Browser(driver, downloads)
    finally:
        driver.quit()


class Browser:
    """What the tests do with it."""

    def __init__(self, driver: Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads
        self.address = ""

    def open(self, path: str) -> None:
        """Load a page."""
        self.driver.get(self.address + path)

    def log_in(self, token: str, path: str = "/") -> None:
        """Through the form, as somebody else than before."""
        self.driver.delete_all_cookies()
        self.open(path)
        self.find("#token").send_keys(token)
        self.press("Log in")

    def find(self, css: str) -> WebElement:
        """The first element that fits."""
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        """All elements that fit."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def fill(self, css: str, text: str) -> None:
        """Write into a field, instead of what is there."""
        field = self.find(css)
        field.clear()
        field.send_keys(text)

    def press(self, words: str, within: str = "") -> None:
        """Press the first button with these words, and wait for the page that follows."""
        before = self.find("html")
        buttons = [b for b in self.all(f"{within} button") if b.text.strip().startswith(words) and b.is_displayed()]
        buttons[0].click()
        self.wait(lambda: _gone(before))

    def unfold(self, words: str, within: str = "") -> None:
        """Open what is folded up under these words."""
        folded = self.all(f"{within} summary")
        next(s for s in folded if " ".join(s.get_attribute("textContent").split()) == words).click()

    def wait(self, condition, seconds: float = SECONDS) -> None:  # type: ignore[no-untyped-def]
        """Until something holds; a page that is just being replaced is no answer yet."""
        waiting = WebDriverWait(self.driver, seconds, poll_frequency=0.05, ignored_exceptions=[WebDriverException])
        waiting.until(lambda _: condition())

    @property
    def text(self) -> str:
        """All that the page says."""
        return self.find("body").text

    @property
    def path(self) -> str:
        """Where the browser is, without the host."""
        return self.driver.current_url.removeprefix(self.address)

    def complaints(self) -> list[str]:
        """What the console was told since the last call: errors and warnings."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def cookies(self) -> dict[str, str]:
        """For calls beside the browser."""
        return {cookie["name"]: cookie["value"] for cookie in self.driver.get_cookies()}


def _gone(element: WebElement) -> bool:
    try:
        element.is_enabled()
    except WebDriverException:  # stale, or its document is gone
        return True
    return False
