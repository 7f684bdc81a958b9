"""Settings: where things run and live. What changes a result is a parameter (params.yaml), never a setting.

Every field is read from the environment as `DMCP_<NAME>`, else from a `.env` file in the working directory, else from a
file `dmcp_<name>` in the folder that DMCP_SECRETS_DIR names. Without any setting at all everything is embedded: state
below `.dmcp/`, an object store on loopback, SQLite, a local MLflow.
"""

import os
from functools import cache
from pathlib import Path
from typing import Literal, Self

import psutil
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.errors import SettingsError

SECRET_LENGTH = 32  # of what signs sessions


class Settings(BaseSettings):
    """All settings, with the embedded defaults."""

    model_config = SettingsConfigDict(
        env_prefix="DMCP_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    home: Path = Field(Path(".dmcp"), description="private state: vault, registry, embedded object store, MLflow, logs")
    data: Path = Field(Path("data"), description="variants and reports, one folder a data set (DVC outputs)")
    mirror: Path | None = Field(None, description="folder that holds data sets already downloaded")

    workers: int = Field(
        default_factory=lambda: psutil.cpu_count(logical=True) or 1, ge=1, description="parallel shards"
    )
    runner: Literal["threads", "processes", "dask", "ray"] = Field("threads", description="what runs the shards' tasks")
    dask_address: str | None = Field(None, description="scheduler of a Dask cluster; unset: one of our own on loopback")
    ray_address: str | None = Field(None, description="address of a Ray cluster; unset: one of our own")
    shards_per_run: int = Field(0, ge=0, description="protect more shards by child runs of so many each; 0: never")
    runs_at_once: int = Field(2, ge=1, description="child runs of one flow at the same time")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where networks run")

    s3_endpoint: str | None = Field(None, description="address of an S3-compatible server; unset: the embedded one")
    s3_region: str = "us-east-1"
    s3_access_key: str | None = Field(None, description="unset: the AWS default credential chain")
    s3_secret_key: SecretStr | None = None
    s3_public_bucket: str = Field("dmcp-public", description="publications: what anyone may read")
    s3_private_bucket: str = Field("dmcp-private", description="requests and what was restored for them")
    earlier_versions: Literal["refuse", "withdraw", "keep"] | None = Field(
        None,
        description="what publishing does to versions that show the same images in another way; unset: refuse, and in "
        "the embedded store, which nobody else reads, withdraw",
    )
    s3_prefix: str = Field("", description="prefix of every object name in both buckets")

    vault_kek: str | None = Field(
        None, description="what locks the vault: passphrase:, file:, aws-kms://, hashivault://"
    )
    vault_passphrase: SecretStr | None = Field(None, description="unlocks the vault; unset: the key file is used")
    vault_key_file: Path | None = Field(None, description="32 random bytes, mode 0600; default HOME/vault.key")
    registry_url: str | None = Field(None, description="SQLAlchemy address; default SQLite below HOME")
    migrate: bool = Field(False, description="bring a registry that an earlier release made to this release's schema")
    audit_every_entries: int = Field(1000, ge=1, description="anchor the audit log after so many entries")
    audit_every_seconds: float = Field(900, gt=0, description="and after so many seconds, when anything was added")
    mlflow_uri: str | None = Field(None, description="MLflow tracking address; default SQLite below HOME")

    gateway_host: str = Field("127.0.0.1", description="where the gateway listens; others reach it through a proxy")
    gateway_port: int = Field(8790, ge=0, le=65535, description="0: a free one")
    gateway_secret: SecretStr | None = Field(
        None, description="signs the sessions of the pages, 32 characters or more; unset: HOME/gateway.secret is made"
    )
    gateway_rate: str = Field("600/minute", description="calls that one token may make")
    gateway_login_rate: str = Field("20/minute", description="failed logins from one address")
    gateway_rate_storage: str = Field("memory://", description="where rates are counted; redis:// when shared")
    upload_limit: int = Field(1 << 30, ge=1, description="bytes of one upload through the gateway")
    upload_limit_presigned: int = Field(5 << 30, ge=1, description="bytes of one upload to a presigned address")
    gateway_space: int = Field(32 << 30, ge=1, description="bytes on disk for all uploads on their way together")
    gateway_user_space: int = Field(16 << 30, ge=1, description="bytes of them that one user may take")
    presigned_seconds: int = Field(900, ge=1, le=604800, description="how long presigned addresses are good")
    uploads_days: float = Field(
        2, ge=0, description="how long uploads and inputs are kept that nobody needs; 0: for ever"
    )
    results_days: float = Field(30, ge=0, description="how long requests that ended keep their results; 0: for ever")
    stalled_minutes: float = Field(60, gt=0, description="a restoration that does not get on for so long is begun anew")

    @field_validator("gateway_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < SECRET_LENGTH:
            raise PydanticCustomError("too_short", f"shorter than {SECRET_LENGTH} characters")
        return value

    @model_validator(mode="after")
    def _buckets_of_ones_own(self) -> Self:
        if self.s3_public_bucket == self.s3_private_bucket:
            raise PydanticCustomError(
                "one_bucket",
                "DMCP_S3_PUBLIC_BUCKET and DMCP_S3_PRIVATE_BUCKET name one bucket, and what is restored would lie "
                "where anyone reads",
            )
        return self

    def home_path(self, *parts: str) -> Path:
        """An absolute path below the private state folder."""
        return self.home.resolve().joinpath(*parts)

    def data_path(self, dataset: str, *parts: str) -> Path:
        """A path below this data set's folder (relative when `data` is, so that DVC and humans see the same name)."""
        return self.data.joinpath(dataset, *parts)


@cache
def settings() -> Settings:
    """The process's settings, read once.

    Raises:
        SettingsError: a variable has a value that can not be used, or there is no folder DMCP_SECRETS_DIR.
    """
    secrets = os.environ.get("DMCP_SECRETS_DIR") or None
    if secrets is not None and not Path(secrets).is_dir():
        raise SettingsError(f"DMCP_SECRETS_DIR names no folder: {secrets}.", "Correct it, or unset it.")
    try:
        return Settings(_secrets_dir=secrets)  # type: ignore[call-arg]
    except ValidationError as error:
        problems = "; ".join(
            "".join(f"DMCP_{str(at).upper()}: " for at in e["loc"][:1]) + e["msg"] for e in error.errors()
        )
        raise SettingsError(f"A setting can not be used: {problems}.", "Correct the environment or .env.") from error
