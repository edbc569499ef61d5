"""Settings of the service: those of the workers, and where it keeps its state and listens."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from workers.checkpoints.checkpoint import CheckpointError, local_path
from workers.checkpoints.remote.path import WRITABLE, is_remote, parse_root
from workers.settings import WorkerSettings

__all__ = ["DATABASE", "Settings", "is_loopback"]

DATABASE = "jobs.sqlite3"
"""The embedded job store in the state directory; SQLite's own files beside it have names that begin so."""


class Settings(WorkerSettings):
    """Environment variables ``TAUMERGE_…`` (and ``PORT``), or a TOML file named by ``TAUMERGE_CONFIG``.

    Paths are absolute once read, so that the service's processes agree on them wherever they run.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, populate_by_name=True, extra="forbid", hide_input_in_errors=True
    )

    database_url: str = Field(default="", repr=False)
    """SQLAlchemy URL of the job store; empty: a SQLite file in ``state_dir``."""
    token: SecretStr | None = Field(default=None, min_length=1)
    """Bearer token that every request must carry; null: none, and loopback only."""
    read_roots: Annotated[tuple[str, ...], NoDecode] = (".",)
    """Directories that requests may read, as paths or ``file:///`` URIs, and prefixes of remote places
    (``s3://bucket/prefix``, ``gs://…``, ``hf://owner``, ``hf://datasets/owner``, ``https://host/path``); separated by
    commas, empty: none."""
    write_roots: Annotated[tuple[str, ...], NoDecode] = (".",)
    """Directories that requests may write into, and prefixes in stores (``s3://…``, ``gs://…``); empty: none."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65535, validation_alias=AliasChoices("TAUMERGE_PORT", "PORT"))
    """Port to listen on."""
    max_running_jobs: int = Field(default=2, ge=1, le=64)
    """Jobs that run at the same time; they share the shard workers."""
    max_queued_jobs: int = Field(default=1000, ge=1)
    """Jobs that may wait; what comes beyond is refused with 429, and may come again."""
    job_ttl: float | None = Field(default=None, gt=0)
    """Seconds after which ended jobs are forgotten (their outputs stay); null: never."""
    max_attempts: int = Field(default=3, ge=1)
    """Attempts that may be lost, with their process or their runner, before a job fails; orderly stops do not count."""
    lease_seconds: float = Field(default=15.0, ge=1.0)
    """How long a running job stays with a runner that gives no sign of life."""
    events_seconds: float = Field(default=60.0, gt=0, le=300.0)
    """How long one connection of server-sent events lasts; clients resume with ``Last-Event-ID``."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *args: Any, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        init, *rest = super().settings_customise_sources(settings_cls, *args, **sources)
        # Other empty variables count as unset, but whoever empties these wants to allow nothing.
        closed = [
            name for name in ("read_roots", "write_roots") if os.environ.get(f"TAUMERGE_{name.upper()}") == ""
        ]
        return (init, InitSettingsSource(settings_cls, dict.fromkeys(closed, ())), *rest)

    @field_validator("read_roots", "write_roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("read_roots", "write_roots")
    @classmethod
    def _directories(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_root(part) for part in value)

    @field_validator("write_roots")
    @classmethod
    def _writable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for root in value:
            if is_remote(root) and not root.startswith(tuple(f"{scheme}://" for scheme in WRITABLE)):
                raise ValueError(f"{root}: outputs cannot be written there")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.database_url:
            self.database_url = f"sqlite:///{self.state_dir / DATABASE}"
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"set TAUMERGE_TOKEN to listen on {self.host}: without a token the service listens on loopback only"
            )
        return self


def _root(value: str) -> str:
    """``value`` as an absolute path without symbolic links, a relative one from the working directory; or a remote
    prefix as it is."""
    try:
        if is_remote(value):
            parse_root(value)
            return value
        path = local_path(value) if "://" in value else Path(value).expanduser()
    except CheckpointError as error:
        raise ValueError(f"{value}: {error}") from None
    return str(path.resolve())


def is_loopback(host: str) -> bool:
    """Whether ``host``, an address or a name, is this machine and nothing else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
