"""Claims jobs and runs them: one detached Ray actor, with a warm process for each job it may run at once.

The runner holds nothing durable. When it dies, its job processes die with it, and its leases run out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import uuid4

import ray
from ray.exceptions import RayActorError, RayError
from sqlalchemy.exc import SQLAlchemyError

from service import logs
from service.claims import Claim
from service.job_process import JOBS, JobFunction, JobProcess, warm_up
from service.settings import Settings
from service.store import RESUMED_KINDS, Store
from taumerge.schemas import JobKind
from workers.checkpoints.files import locate
from workers.checkpoints.remote.staging import staging_for
from workers.merging.pool import resident_bytes
from workers.settings import WorkerSettings

__all__ = ["NAME", "NAMESPACE", "JobFunction", "find_runner", "start_runner", "stop_runner"]

NAME = "runner"
NAMESPACE = "taumerge"
POLL_SECONDS = 0.5
STOP_SECONDS = 15
HOUSEKEEPING_SECONDS = 5.0

log = logging.getLogger(__name__)


class _Slot:
    """A place for one job at a time."""

    def __init__(self, kinds: Sequence[JobKind]) -> None:
        self.kinds = kinds
        self.process: Any = None
        self.claim: Claim | None = None
        """What it runs at the moment."""
        self.latest = 0.0
        """When its latest job ended, by the monotonic clock."""
        self.woken = threading.Event()


class Runner:
    """Keeps ``max_running_jobs`` job processes warm and gives each the oldest queued job, one at a time.

    Searches and fine-tunes may take hours: where there are several processes, the first takes none of them, so that
    a merge never waits for more than other merges. Jobs that run at once share the shard workers unit by unit.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Mapping[JobKind, JobFunction],
        prepare: Callable[[WorkerSettings], None],
    ) -> None:
        logs.configure("runner")
        self._settings = settings
        self._start = (settings, jobs, prepare)
        self._owner = f"runner-{uuid4().hex}"
        self._store = Store.open(settings.database_url)
        self._stopping = threading.Event()
        everything = get_args(JobKind)
        short = [kind for kind in everything if kind not in RESUMED_KINDS]
        alone = settings.max_running_jobs == 1
        self._slots = [
            _Slot(short if number == 0 and not alone else everything)
            for number in range(settings.max_running_jobs)
        ]
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in self._slots
        ]
        self._threads.append(threading.Thread(target=self._renew_leases, daemon=True))
        self._threads.append(threading.Thread(target=self._keep_house, daemon=True))
        for thread in self._threads:
            thread.start()

    def wake(self, kind: JobKind) -> None:
        """A job was queued: look now instead of at the next poll.

        The process that ran a job last looks first: it may have kept actors that this one can use.
        """
        free = [
            slot
            for slot in self._slots
            if kind in slot.kinds and slot.claim is None and not slot.woken.is_set()
        ]
        if free:
            max(free, key=lambda slot: slot.latest).woken.set()

    def shutdown(self) -> None:
        """Stop every job process and let go of the jobs, so that they start again elsewhere at once."""
        self._stopping.set()
        for slot in self._slots:
            if slot.process is not None:
                ray.kill(slot.process)
            slot.woken.set()
        for thread in self._threads:
            thread.join(timeout=5)
        self._store.leave(self._owner)

    def _renew_leases(self) -> None:
        while not self._stopping.wait(self._settings.lease_seconds / 5):
            # Without a process nothing can run, and /readyz tells by the missing heartbeat.
            if any(slot.process is not None for slot in self._slots):
                self._heartbeat()

    def _heartbeat(self) -> None:
        try:
            held = [claim for slot in self._slots if (claim := slot.claim) is not None]
            self._store.heartbeat(self._owner, held, self._settings.lease_seconds)
        except SQLAlchemyError:
            log.exception("the heartbeat could not be written")

    def _keep_house(self) -> None:
        while not self._stopping.wait(HOUSEKEEPING_SECONDS):
            try:
                if self._settings.job_ttl is not None:
                    self._store.forget(datetime.now(UTC) - timedelta(seconds=self._settings.job_ttl))
                self._sweep()
                if (resident := resident_bytes()) is not None:
                    self._store.note_resident(resident)
            except (RayError, SQLAlchemyError):
                log.exception("housekeeping is put off")

    def _sweep(self) -> None:
        """Remove the hidden directories that no job will go on with."""
        for directory in self._store.orphans():
            try:
                staging = staging_for(locate(directory.output), directory.identity, self._settings.work_dir)
                staging.discard()
                if os.path.lexists(staging.path):
                    log.warning("%s is of no use any more and cannot be removed", staging.path)
                else:
                    self._store.swept(directory)
            except Exception:  # the others do not wait for this one
                log.exception("what was staged for %s cannot be removed", directory.output)

    def _serve(self, slot: _Slot) -> None:
        """A job process, its jobs one after another, and another process when it dies."""
        while not self._stopping.is_set():
            try:
                slot.process = self._start_process()
                self._heartbeat()
                while not self._stopping.is_set():
                    slot.woken.clear()
                    if not self._run_next(slot):
                        slot.woken.wait(POLL_SECONDS)
            except (RayError, SQLAlchemyError) as error:
                if not self._stopping.is_set():
                    log.warning("job process %d is replaced: %s", self._slots.index(slot), error)
                    self._stopping.wait(POLL_SECONDS)
            finally:
                slot.process = None

    def _start_process(self) -> Any:
        process: Any = ray.remote(JobProcess).options(num_cpus=0).remote(*self._start)
        ray.get(process.ready.remote())
        return process

    def _run_next(self, slot: _Slot) -> bool:
        """Claim a job and run it; whether there was one."""
        settings = self._settings
        claim = self._store.claim(
            self._owner,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            kinds=slot.kinds,
        )
        if claim is None:
            return False
        slot.claim = claim
        try:
            ray.get(slot.process.run.remote(claim))
        except RayError as error:
            died = isinstance(error, RayActorError)
            reason = "its process died" if died else "its outcome could not be stored"
            if not self._stopping.is_set():
                with logs.of_job(claim.job_id):
                    log.warning("attempt %d is lost: %s", claim.attempt, reason)
                self._store.lost(claim, reason, max_attempts=settings.max_attempts)
            raise
        finally:
            slot.claim, slot.latest = None, time.monotonic()
        return True


def find_runner() -> Any | None:
    """The runner of this Ray cluster, or None."""
    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def start_runner(
    settings: Settings,
    jobs: Mapping[JobKind, JobFunction] = JOBS,
    prepare: Callable[[WorkerSettings], None] = warm_up,
) -> Any:
    """Start the runner of this Ray cluster, in the place of one that is there."""
    stop_runner()
    options = {"name": NAME, "namespace": NAMESPACE, "lifetime": "detached"}
    actor = ray.remote(Runner).options(**options, num_cpus=0, max_restarts=-1, max_concurrency=8)
    return actor.remote(settings, jobs, prepare)


def stop_runner() -> None:
    """Stop the runner of this Ray cluster, if there is one, and wait until its name is free."""
    while (runner := find_runner()) is not None:
        try:
            ray.get(runner.shutdown.remote(), timeout=STOP_SECONDS)
        except RayError as error:
            log.warning("the runner did not stop by itself: %s", error)
        ray.kill(runner)
        time.sleep(0.05)
