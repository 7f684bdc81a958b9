"""The environment that every process of ours runs in: quiet, below HOME, the same in daemons as in the caller."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from storage.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent


def quiet_environment(settings: Settings) -> dict[str, str]:
    """Settings of Prefect and MLflow that hold everywhere: state below HOME, no telemetry, no prompts."""
    return {
        "PREFECT_HOME": str(settings.home_path("prefect")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # SQLite has one writer at a time; on a busy disk its turn may come later than the 5 and 10 s Prefect waits.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
    }


def service_environment(settings: Settings) -> dict[str, str]:
    """The whole environment of a daemon: the caller's, the quiet settings, absolute folders (its cwd is PROJECT)."""
    environment = os.environ | quiet_environment(settings) | _settings_environment(settings)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _settings_environment(settings: Settings) -> dict[str, str]:
    """The settings that were given, as variables: a daemon's cwd is PROJECT, so it reads another `.env` than we did."""
    given = {name: getattr(settings, name) for name in {*settings.model_fields_set, "home"}}
    if Path.cwd().resolve() != PROJECT:
        given["data"] = settings.data  # below the caller's folder, not below PROJECT
    return {f"DMCP_{name.upper()}": _text(value) for name, value in given.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value.resolve() if isinstance(value, Path) else value)
