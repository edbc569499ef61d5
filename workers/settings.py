"""Settings of the workers: environment variables ``TAUMERGE_…``, or a TOML file named by ``TAUMERGE_CONFIG``."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pydantic import ByteSize, Field, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)


class WorkerSettings(BaseSettings):
    """What the shard workers may use. An environment variable wins over the TOML file.

    The file has the service's settings, too; the names there are those of the variables, with or without the prefix.
    """

    model_config = SettingsConfigDict(env_prefix="TAUMERGE_", extra="ignore")

    state_dir: Path = Path(".taumerge")
    """Directory of the embedded state, absolute once read; on several nodes one that they share."""
    workers: int | None = Field(default=None, ge=1)
    """Shard workers; null: one for each GPU of the cluster, or for each CPU where it has no GPU."""
    accelerator_type: str | None = None
    """Ray accelerator type that shard workers are pinned to, for example ``V100``."""
    worker_memory: ByteSize = ByteSize(2**30)
    """Bytes of tensors that one shard worker keeps resident between merges; 0 keeps none."""
    allow_code_execution: bool = False
    """Whether requests may evaluate on tasks that run code: what models write (HumanEval), or Python beside a task's
    YAML. Such code has the rights of the workers."""

    allow_pickle: bool = False
    """Whether merges may read pickled weights (``.bin``, ``.pt``) on a disk: tensors only, in a process of its own."""

    @property
    def pickle_dir(self) -> Path | None:
        """Where pickled weights are converted; none where they are not allowed."""
        return self.work_dir / "unpickled" if self.allow_pickle else None

    @property
    def work_dir(self) -> Path:
        """Where outputs grow that are uploaded to a store."""
        return self.state_dir / "work"

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml_file = os.environ.get("TAUMERGE_CONFIG")
        sources = (init_settings, env_settings)
        if not toml_file:
            return sources
        if not Path(toml_file).is_file():
            raise ValueError(f"there is no file {toml_file}")
        with Path(toml_file).open("rb") as file:
            values = tomllib.load(file)
        named = {name.lower().removeprefix("taumerge_"): value for name, value in values.items()}
        return (*sources, InitSettingsSource(settings_cls, named))
