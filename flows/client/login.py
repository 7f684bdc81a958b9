"""Which gateway the command line talks to, and with which token: HOME/remote.json, readable by its owner only.

DMCP_TOKEN and DMCP_REMOTE (an address) go before what is stored.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, SecretStr, ValidationError, field_serializer

from storage.errors import BadToken, SettingsError, UsageError
from storage.files import write_atomic

FILE_NAME = "remote.json"


class Login(BaseModel):
    """A gateway's address and the token for it."""

    url: str
    token: SecretStr
    insecure: bool = False

    @field_serializer("token", when_used="json")
    def _bare(self, token: SecretStr) -> str:
        return token.get_secret_value()


def home_folder() -> Path:
    """The private state folder: DMCP_HOME. Raises SettingsError."""
    from storage.settings import Settings, settings

    try:
        return Settings().home_path()
    except ValidationError:
        return settings().home_path()  # says what is wrong


def store(login: Login, home: Path) -> Path:
    """Keep a login; the file is private before its first byte is written."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / FILE_NAME
    write_atomic(path, login.model_dump_json(indent=1).encode(), 0o600)
    return path


def forget(home: Path) -> bool:
    """Remove the login; whether there was one."""
    path = home / FILE_NAME
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def current(home: Path) -> Login:
    """The login to use: the environment's, else the stored one.

    Raises:
        BadToken: there is none.
        SettingsError: the file can not be read, or others may read it.
        UsageError: DMCP_TOKEN without an address.
    """
    url, token = os.environ.get("DMCP_REMOTE"), os.environ.get("DMCP_TOKEN")
    stored = _stored(home / FILE_NAME)
    if url and stored is not None and url.rstrip("/") != stored.url:
        stored = None  # a token goes to the gateway that it is for
    if stored is None and not (url and token):
        if token:
            raise UsageError("No gateway is named.", "Run: dmcp remote login URL, or set DMCP_REMOTE.")
        raise BadToken("You are not logged in.", "Run: dmcp remote login URL")
    return Login(
        url=url or (stored.url if stored else ""),
        token=SecretStr(token) if token else (stored.token if stored else SecretStr("")),
        insecure=stored.insecure if stored else False,
    )


def _stored(path: Path) -> Login | None:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise SettingsError(f"Others may read {path}, which holds your token.", f"Run: chmod 600 {path}")
            return Login.model_validate_json(file.read())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise SettingsError(f"{path} can not be read.", "Run: dmcp remote login URL") from None
