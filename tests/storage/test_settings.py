"""Settings that can not be used are refused by their name, and secrets are not shown."""

import traceback
from collections.abc import Iterator

import pytest

from storage.errors import SettingsError
from storage.settings import settings


@pytest.fixture(autouse=True)
def read_anew() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_a_short_secret_for_sessions_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCP_GATEWAY_SECRET", "hunter2" * 4)
    with pytest.raises(SettingsError, match="DMCP_GATEWAY_SECRET: shorter than 32 characters") as error:
        settings()
    assert "hunter2" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("given", ["", "s" * 32])
def test_a_long_or_no_secret_for_sessions_is_taken(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("DMCP_GATEWAY_SECRET", given)
    secret = settings().gateway_secret
    assert (secret.get_secret_value() if secret is not None else "") == given
