"""``python -m examples.miniature.study NAME|all``: carry out a study; table and figure go to ``docs/study``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from examples.miniature.experiment import BASE
from examples.miniature.study.laboratory import Laboratory
from examples.miniature.study.report import write
from examples.miniature.study.studies import STUDIES
from service.local import local_service
from taumerge import Client, TaumergeError

DIRECTORY = Path(".taumerge/study")
DOCS = Path(__file__).parents[3] / "docs" / "study"


def main() -> None:
    """Carry out one study or all; fine-tunes, searches and bases stay below ``.taumerge/study``."""
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.study", description=__doc__)
    parser.add_argument("name", choices=[*STUDIES, "all"])
    name = parser.parse_args().name
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    directory = DIRECTORY.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    # Jobs that an earlier run left unfinished are queued anew, so the table of jobs is not kept.
    with TemporaryDirectory(dir=directory) as state:
        settings = {
            "state_dir": state,
            "read_roots": f"{directory},{BASE}",
            "max_running_jobs": min(8, len(os.sched_getaffinity(0))),
        }
        with local_service(directory, **settings) as service_url, Client(service_url()) as client:
            laboratory = Laboratory(client, directory, Console())
            for study in STUDIES.values() if name == "all" else [STUDIES[name]]:
                try:
                    findings = study.carry_out(laboratory)
                except (TaumergeError, RuntimeError) as error:
                    sys.exit(f"The service could not do its part: {error}")
                print(write(study, findings, DOCS))


if __name__ == "__main__":
    main()
