"""``python -m examples.miniature``: the whole demo, with a service of its own unless TAUMERGE_URL names one."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from examples.miniature.experiment import BASE, run
from examples.miniature.finetunes import KINDS
from examples.miniature.table import comparison_table, results_table
from service.local import local_service
from taumerge import TaumergeError

DIRECTORY = Path(".taumerge/demo")
PIPE_WIDTH = 120
"""Columns where the output is no terminal; the table needs them."""


def main() -> None:
    """Run the demo; every model and the service's log stay below ``.taumerge/demo``."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="draws of both kinds of training")
    draws = parser.parse_args().seeds
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    directory = DIRECTORY.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    url = os.environ.get("TAUMERGE_URL")
    settings = {
        "read_roots": f"{directory},{BASE}",
        "max_running_jobs": min(8, len(os.sched_getaffinity(0))),
    }
    with nullcontext(lambda: url) if url else local_service(directory, **settings) as service_url:
        console.print("Starting the service; the tasks are drawn meanwhile …")
        try:
            outcomes = run(service_url, directory, console, draws)
        except (TaumergeError, RuntimeError) as error:
            sys.exit(f"The service could not do its part: {error}")
    console.print(results_table(outcomes[: len(KINDS)]))
    for outcome in outcomes[: len(KINDS)]:
        for line in outcome.diagnosis.verdict:
            console.print(f"{outcome.kind}: {line}", soft_wrap=True)
    if draws > 1:
        console.print(comparison_table(outcomes))
    for outcome in outcomes:
        console.print(f"{outcome.search.output}/report.html", soft_wrap=True)


if __name__ == "__main__":
    main()
