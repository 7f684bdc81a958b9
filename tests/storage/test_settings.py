"""Settings that can not be used are refused by their name, and secrets are not shown."""

import traceback
from collections.abc import Iterator

import pytest

from storage.errors import SettingsError
from storage.objects import open_store
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


def test_what_is_restored_does_not_lie_where_anyone_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCP_S3_PUBLIC_BUCKET", "dmcp-private")
    with pytest.raises(SettingsError, match="DMCP_S3_PUBLIC_BUCKET and DMCP_S3_PRIVATE_BUCKET name one bucket"):
        settings()


def test_on_aws_a_bucket_of_the_default_name_is_not_taken_for_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCP_S3_ENDPOINT", "https://s3.eu-central-1.amazonaws.com")
    monkeypatch.setenv("DMCP_S3_PUBLIC_BUCKET", "mine")
    assert open_store(settings(), "public").bucket == "mine"
    with pytest.raises(SettingsError, match=r"dmcp-private at .* may be anybody's") as error:
        open_store(settings(), "private")
    assert "DMCP_S3_PRIVATE_BUCKET" in error.value.cure
