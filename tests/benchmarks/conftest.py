from collections.abc import Iterator

import pytest

from storage.settings import settings


@pytest.fixture
def without_mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Images come from `sample`, wherever the tests run."""
    monkeypatch.delenv("DMCP_MIRROR", raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()
