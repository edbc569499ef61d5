"""One Ray for all integration tests: four fake V100s, so that shard workers ask for a GPU each and find no CUDA."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from s3_server import environment

from service.local import free_port
from taumerge.schemas import MergeRequest, MergeResult, Progress
from workers.merging import run_merge, stop_shard_actors
from workers.settings import WorkerSettings

GOLDEN = Path(__file__).parents[1] / "golden"
PLUGINS = Path(__file__).parents[1] / "plugins"
"""What a deployment might install beside taumerge."""


@pytest.fixture(scope="session")
def s3_port() -> int:
    """Where the S3 server of these tests is, once it is started; the environment says it to every process."""
    port = free_port()
    os.environ.update(environment(port))
    return port


@pytest.fixture(scope="session")
def gs_port() -> int:
    """Where the Google Cloud Storage server of these tests is, once it is started."""
    port = free_port()
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{port}"
    return port


@pytest.fixture(scope="session")
def ray_session(s3_port: int, gs_port: int) -> Iterator[str]:
    """The address of the cluster that this process is connected to."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2,
        num_gpus=4,
        resources={"accelerator_type:V100": 1},
        include_dashboard=False,
        log_to_driver=False,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def warm_workers(ray_session: str) -> Iterator[WorkerSettings]:
    """Settings of two shard workers that stay between merges."""
    yield WorkerSettings(workers=2, accelerator_type="V100", worker_memory=2**28)
    stop_shard_actors()


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


class Merges:
    """Runs merges on two warm shard workers."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def __call__(
        self,
        body: dict[str, Any],
        report: Callable[[Progress], None] = ignore,
        *,
        settings: WorkerSettings | None = None,
        job_id: str = "",
    ) -> MergeResult:
        request = MergeRequest.model_validate(body)
        detached = settings is None
        return run_merge(request, settings or self.settings, report, job_id=job_id, detached=detached)


@pytest.fixture
def merge(warm_workers: WorkerSettings) -> Merges:
    return Merges(warm_workers)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden checkpoints and what the authors' code makes of them."""
    return GOLDEN


@pytest.fixture
def golden_body(tmp_path: Path) -> dict[str, Any]:
    """A merge of the golden checkpoints, into many files."""
    names = ["ft-digits", "ft-parity", "ft-large", "ft-rotation", "ft-mirrored"]
    return {
        "base": str(GOLDEN / "base"),
        "models": [str(GOLDEN / name) for name in names],
        "method": {"name": "cclip", "rho": 2.0, "iterations": 2},
        "scaling": 0.3,
        "output": str(tmp_path / "out"),
        "max_shard_size": "30KB",
        "statistics": "full",
    }


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of the weights by file name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob("*.safetensors"))
    }
