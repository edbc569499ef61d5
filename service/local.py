"""The service as a subprocess on a free loopback port, for demos, benchmarks and tests."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["free_port", "local_service"]

STOP_SECONDS = 60
UNUSED_PORTS = range(20000, 32768)
"""Neither Ray's workers (up to 19999) nor outgoing connections (from 32768 on) take one of these."""
TRIES = 100


def free_port() -> int:
    """A loopback port that nobody listens at, and that nobody is given by chance until somebody does."""
    for port in random.sample(UNUSED_PORTS, TRIES):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError(f"{TRIES} loopback ports from {UNUSED_PORTS.start} on are in use")


@contextmanager
def local_service(directory: Path, **settings: object) -> Iterator[Callable[[], str]]:
    """Start ``python -m service`` with leave to read and write below ``directory``, on a Ray of its own.

    Yields at once a function that waits until the service is ready and returns its address, so that the caller
    can work while Ray starts. The service is stopped on the way out; its log is ``service.log`` in ``directory``.

    Args:
        settings: further settings by their names in lower case, for example ``worker_memory=0``.
    """
    port = free_port()
    defaults = {"state_dir": directory / "state", "read_roots": directory, "write_roots": directory}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAUMERGE_")}
    environment |= {"RAY_ADDRESS": "local", "PORT": str(port)}
    environment |= {f"TAUMERGE_{name.upper()}": str(value) for name, value in (defaults | settings).items()}
    log = directory / "service.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the caller alone, which stops the service in order
        ) as process,
    ):
        stdout = process.stdout
        assert stdout is not None

        def url() -> str:
            if not stdout.readline():  # one line when it is ready, none if it ends before
                raise RuntimeError(f"the service did not start; its log is {log}")
            return f"http://127.0.0.1:{port}"

        try:
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
