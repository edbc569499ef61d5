"""Merges like a service whose process dies: ``dying_driver.py ADDRESS JOB_ID BODY FILES``.

It kills itself when ``FILES`` output files are finished.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

import ray

from taumerge.schemas import MergeRequest, Progress
from workers.merging import run_merge
from workers.settings import WorkerSettings


def main() -> None:
    address, job_id, body, files = sys.argv[1:]
    request = MergeRequest.model_validate(json.loads(body))
    output = Path(request.output)

    def die(progress: Progress) -> None:
        finished = list(output.parent.glob(f".{output.name}.*.partial/.taumerge-journal/*.json"))
        if len([path for path in finished if "safetensors" in path.name]) >= int(files):
            os.kill(os.getpid(), signal.SIGKILL)

    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    run_merge(
        request, WorkerSettings(workers=1, accelerator_type="V100", worker_memory=0), die, job_id=job_id
    )


if __name__ == "__main__":
    main()
