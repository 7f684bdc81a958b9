"""One gateway and one browser for all tests of the pages."""

from collections.abc import Iterator

import pytest

from tests.pages.browser import Browser, chromium, executables
from tests.pages.place import Place, running_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_place(tmp_path_factory.mktemp("pages")) as running:
        yield running


@pytest.fixture(scope="session")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if executables() is None:
        pytest.skip("needs Chromium and chromedriver: tests/install-chromium installs them where apt and root are")
    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def browser(one_browser: Browser, place: Place) -> Iterator[Browser]:
    """With a clean jar; a test that leaves complaints in the console fails."""
    one_browser.address = place.address
    one_browser.driver.delete_all_cookies()
    one_browser.complaints()
    yield one_browser
    assert one_browser.complaints() == []
