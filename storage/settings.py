"""Settings: where things run and live. What changes a result is a parameter (params.yaml), never a setting.

Every field is read from the environment as `DMCP_<NAME>` (or from a `.env` file in the working directory). Without any
setting at all everything is embedded: state below `.dmcp/`, an object store on loopback, SQLite, a local MLflow.
"""

from functools import cache
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.errors import SettingsError


class Settings(BaseSettings):
    """All settings, with the embedded defaults."""

    model_config = SettingsConfigDict(
        env_prefix="DMCP_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path = Field(Path(".dmcp"), description="private state: vault, registry, embedded object store, MLflow, logs")
    data: Path = Field(Path("data"), description="variants and reports, one folder a data set (DVC outputs)")
    mirror: Path | None = Field(None, description="folder that holds data sets already downloaded")

    workers: int = Field(
        default_factory=lambda: psutil.cpu_count(logical=True) or 1, ge=1, description="parallel shards"
    )
    runner: Literal["threads", "processes", "dask", "ray"] = Field("threads", description="what runs the shards' tasks")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where networks run")

    s3_endpoint: str | None = Field(None, description="address of an S3-compatible server; unset: the embedded one")
    s3_region: str = "us-east-1"
    s3_access_key: str | None = Field(None, description="unset: the AWS default credential chain")
    s3_secret_key: SecretStr | None = None
    s3_public_bucket: str = Field("dmcp-public", description="publications: what anyone may read")
    s3_private_bucket: str = Field("dmcp-private", description="requests and what was restored for them")
    s3_prefix: str = Field("", description="prefix of every object name in both buckets")

    vault_passphrase: SecretStr | None = Field(None, description="unlocks the vault; unset: the key file is used")
    vault_key_file: Path | None = Field(None, description="32 random bytes, mode 0600; default HOME/vault.key")
    registry_url: str | None = Field(None, description="SQLAlchemy address; default SQLite below HOME")
    mlflow_uri: str | None = Field(None, description="MLflow tracking address; default SQLite below HOME")

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
        SettingsError: a variable has a value that can not be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(f"DMCP_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"A setting can not be used: {problems}.", "Correct the environment or .env.") from error
