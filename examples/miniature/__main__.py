"""``python -m examples.miniature``: the paper's argument in minutes.

It starts a service of its own unless TAUMERGE_URL names one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from examples.miniature.experiment import run
from service.local import local_service
from taumerge import TaumergeError

DIRECTORY = Path(".taumerge/demo")
PIPE_WIDTH = 110
"""Columns where the output is no terminal; the table needs them."""


def main() -> None:
    """Run the demo; data, models and the service's log stay below ``.taumerge/demo``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="draws of different training to average over")
    seeds = parser.parse_args().seeds
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    directory = DIRECTORY.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    url = os.environ.get("TAUMERGE_URL")
    with nullcontext(lambda: url) if url else local_service(directory) as service_url:
        console.print("Starting the service; the tasks are drawn meanwhile …")
        try:
            run(service_url, directory, console, seeds)
        except (TaumergeError, RuntimeError) as error:
            sys.exit(f"The service could not do its part: {error}")


if __name__ == "__main__":
    main()
