"""The service as a user starts it: ``python -m service`` on a free port, with a state of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from service.local import free_port

STOP_SECONDS = 60
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class RunningService:
    """A started service and the directory that its requests may read and write."""

    url: str
    directory: Path


@pytest.fixture(scope="session")
def service_environment() -> Callable[[Path], dict[str, str]]:
    """Makes the environment of a service whose state and roots are below a directory, on a free port."""
    return _environment


def _environment(directory: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "RAY_ADDRESS" and not name.startswith("TAUMERGE_")
    }
    settings = {
        "PORT": str(free_port()),
        "TAUMERGE_STATE_DIR": str(directory / "state"),
        "TAUMERGE_READ_ROOTS": str(directory),
        "TAUMERGE_WRITE_ROOTS": str(directory),
        "TAUMERGE_WORKERS": "2",
    }
    return {**kept, **settings}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A running service; when the tests are over it is stopped by Ctrl-C, and has to end cleanly."""
    directory = tmp_path_factory.mktemp("service")
    environment = _environment(directory)
    with (directory / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # ends at once when the service does; it gives up by itself
        url = f"http://127.0.0.1:{environment['PORT']}"
        assert line == f"taumerge is ready at {url}\n", (directory / "stderr").read_text()[-4000:]
        yield RunningService(url, directory)
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the whole group
        assert process.wait(STOP_SECONDS) == 0, (directory / "stderr").read_text()[-4000:]
        assert process.stdout.read() == ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def inputs(service: RunningService) -> Path:
    """``base``, a CLIP model of toy size, and ``data``, a folder of dark and one of light images."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    directory = service.directory / "finetuning"
    base = directory / "base"
    base.mkdir(parents=True)
    (base / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{base}", load_weights=False)
    save_file(model.state_dict(), base / "open_clip_model.safetensors", metadata={"format": "pt"})
    for name, shade in (("dark", 30), ("light", 220)):
        (directory / "data" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((32, 32, 3), shade + index, np.uint8)
            PIL.Image.fromarray(pixels).save(directory / "data" / name / f"{index}.png")
    return directory


@pytest.fixture(scope="session")
def body(inputs: Path) -> Callable[..., dict[str, Any]]:
    """Makes a fine-tune of the toy model; settings of its training by name."""

    def make(output: str, **train: Any) -> dict[str, Any]:
        spec = {"steps": 10, "learning_rate": 1e-3, "batch_size": 4, "warmup_steps": 2}
        return {
            "base": str(inputs / "base"),
            "task": {"kind": "clip", "dataset": {"uri": str(inputs / "data"), "format": "image_folder"}},
            "train": spec | train,
            "output": str(inputs / output),
        }

    return make
