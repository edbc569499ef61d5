"""The service as a user starts it: ``python -m service`` on a free port, with a state of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

STOP_SECONDS = 60


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
        "PORT": str(_free_port()),
        "TAUMERGE_STATE_DIR": str(directory / "state"),
        "TAUMERGE_READ_ROOTS": str(directory),
        "TAUMERGE_WRITE_ROOTS": str(directory),
        "TAUMERGE_WORKERS": "2",
    }
    return {**kept, **settings}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


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
