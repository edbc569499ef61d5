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
from examples.miniature.report import write_report
from examples.miniature.table import comparison_table, results_table
from service.local import local_service
from taumerge import TaumergeError

DIRECTORY = Path(".taumerge/demo")
LEGEND = (
    "Accuracy on test images in %; normalised: relative to the model fine-tuned on the task, mean over tasks. λ: step "
    "along the (robust, re-weighted, …) mean of the task vectors. ρ, λ and the best rule (green) are chosen on "
    "validation images."
)


def main() -> None:
    """Run the demo; every model and the service's log stay below ``.taumerge/demo``."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="draws of both kinds of training")
    draws = parser.parse_args().seeds
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    directory = DIRECTORY.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    console = Console()
    url = os.environ.get("TAUMERGE_URL")
    settings = {
        "read_roots": f"{directory},{BASE}",
        "max_running_jobs": min(8, len(os.sched_getaffinity(0))) + 1,  # one of them runs no fine-tunes
    }
    with nullcontext(lambda: url) if url else local_service(directory, **settings) as service_url:
        console.print("Starting the service; the tasks are drawn meanwhile …")
        try:
            outcomes = run(service_url, directory, console, draws)
        except (TaumergeError, RuntimeError) as error:
            sys.exit(f"The service could not do its part: {error}")
    for outcome in outcomes[: len(KINDS)]:
        console.print(results_table(outcome))
        for line in outcome.diagnosis.verdict:
            console.print(f"- {line}", soft_wrap=True)
    console.print(LEGEND, soft_wrap=True)
    if draws > 1:
        console.print(comparison_table(outcomes))
    report = directory / "report.html"
    write_report(outcomes, report)
    console.print(f"The report: {report}", soft_wrap=True)


if __name__ == "__main__":
    main()
