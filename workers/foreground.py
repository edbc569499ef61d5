"""Runs the job of a recipe in the foreground: what ``python -m workers.merge`` and its kin have in common."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import ray
from pydantic import BaseModel, ValidationError

from taumerge import load_recipe
from taumerge.errors import InvalidRequest, JobFailed
from taumerge.schemas import Progress
from workers.settings import WorkerSettings

Request = TypeVar("Request", bound=BaseModel)


def run_recipe(
    schema: type[Request],
    run: Callable[[Request, WorkerSettings, Callable[[Progress], None]], BaseModel],
) -> NoReturn:
    """Read the recipe that the command line names, run it, print the result as JSON, and exit.

    Exit status: 0 done, 1 the job failed, 2 a recipe or setting that cannot be used.
    """
    parser = argparse.ArgumentParser(description="Run the job of a recipe (YAML or JSON) in the foreground.")
    parser.add_argument("recipe", type=Path, help="the request body of the matching POST")
    try:
        request = schema.model_validate(load_recipe(parser.parse_args().recipe))
        settings = _settings()
        _connect()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # in the place of Ray's: as Ctrl-C
        result = run(request, settings, _Printer())
    except ValidationError as error:
        _fail(2, *InvalidRequest.from_validation(error).errors)
    except InvalidRequest as error:
        _fail(2, *error.errors)
    except JobFailed as error:
        _fail(1, f"{error.code}: {error}")
    except KeyboardInterrupt:
        _fail(130, "interrupted; the output is as it was")
    print(result.model_dump_json(indent=2))
    sys.exit(0)


def _settings() -> WorkerSettings:
    try:
        return WorkerSettings()
    except ValidationError:
        raise
    except ValueError as error:  # a file that is not there, or no TOML
        raise InvalidRequest.at(["TAUMERGE_CONFIG"], "unreadable_settings", str(error)) from None


def _connect() -> None:
    # RAY_ADDRESS is set under `ray job submit`; a running local cluster is found by "auto".
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"), logging_level=logging.WARNING, log_to_driver=False
        )
    except ConnectionError:
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)


class _Printer:
    """Writes a line of progress for every tenth of a phase, with what is measured on the way."""

    def __init__(self) -> None:
        self._last = ("", -1)

    def __call__(self, progress: Progress) -> None:
        tenth = 10 * progress.done // progress.total if progress.total else 0
        if (progress.phase, tenth) != self._last:
            self._last = (progress.phase, tenth)
            done = f"{progress.phase}: {tenth * 10} % of {progress.total} {progress.unit}"
            measured = [f"{name} {value:.4g}" for name, value in progress.metrics.items()]
            left = [] if progress.eta_seconds is None else [f"{progress.eta_seconds:.0f} s left"]
            print(", ".join([done, *measured, *left]), file=sys.stderr)


def _fail(status: int, *messages: object) -> NoReturn:
    for message in messages:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
