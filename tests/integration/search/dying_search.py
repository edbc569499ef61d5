"""Searches like a service whose process dies: ``dying_search.py ADDRESS BODY EVALUATIONS``.

It kills itself when ``EVALUATIONS`` merged models have been evaluated.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys

import ray

from taumerge.schemas import Progress, SearchRequest
from workers.search.run import run_search
from workers.settings import WorkerSettings


def main() -> None:
    address, body, evaluations = sys.argv[1:]

    def die(progress: Progress) -> None:
        if progress.phase == "evaluate" and progress.done >= int(evaluations):
            os.kill(os.getpid(), signal.SIGKILL)

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    settings = WorkerSettings(workers=1, accelerator_type="V100", worker_memory=0)
    run_search(SearchRequest.model_validate(json.loads(body)), settings, die)


if __name__ == "__main__":
    main()
