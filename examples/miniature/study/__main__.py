"""``python -m examples.miniature.study NAME|all``: carry out a study; table and figure go to ``docs/study``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    """Carry out one study or all, with a service of its own unless TAUMERGE_URL names one.

    Fine-tunes, searches and bases stay below ``.taumerge/study``.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.miniature.study", description=__doc__)
    parser.add_argument("name", choices=[*STUDIES, "all"])
    name = parser.parse_args().name
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    directory = DIRECTORY.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    url = os.environ.get("TAUMERGE_URL")
    with nullcontext(url) if url else own_service(directory) as address, Client(address) as client:
        laboratory = Laboratory(client, directory, Console())
        for study in STUDIES.values() if name == "all" else [STUDIES[name]]:
            try:
                findings = study.carry_out(laboratory)
            except (TaumergeError, RuntimeError) as error:
                sys.exit(f"The service could not do its part: {error}")
            print(write(study, findings, DOCS))


@contextmanager
def own_service(directory: Path) -> Iterator[str]:
    """A service that may read and write below ``directory``; yields its address.

    Its table of jobs is not kept: what an earlier run left unfinished is queued anew by this one.
    """
    with TemporaryDirectory(dir=directory) as state:
        settings = {
            "state_dir": state,
            "read_roots": f"{directory},{BASE}",
            "max_running_jobs": min(8, len(os.sched_getaffinity(0))) + 1,  # one of them runs no fine-tunes
        }
        with local_service(directory, **settings) as service_url:
            yield service_url()


if __name__ == "__main__":
    main()
