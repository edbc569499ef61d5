"""Claims jobs and runs them: one detached Ray actor, with a warm process for each job it may run at once.

The runner holds nothing durable. When it dies, its job processes die with it, and its leases run out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError, RayError
from sqlalchemy.exc import SQLAlchemyError

from service.claims import Claim, LeaseLost
from service.settings import Settings
from service.store import Store
from taumerge.errors import InvalidRequest, JobCancelled, JobFailed
from taumerge.schemas import (
    DiagnoseRequest,
    FinetuneRequest,
    JobError,
    JobKind,
    JobResult,
    MergeRequest,
    Progress,
    SearchRequest,
)
from workers.diagnostics import run_diagnose
from workers.finetuning import run_finetune
from workers.merging import Superseded, run_merge
from workers.merging.pool import shard_actors
from workers.search import run_search
from workers.settings import WorkerSettings

__all__ = ["NAME", "NAMESPACE", "JobFunction", "find_runner", "start_runner", "stop_runner"]

NAME = "runner"
NAMESPACE = "taumerge"
POLL_SECONDS = 0.5
REPORT_SECONDS = 0.25
STOP_SECONDS = 15

JobFunction = Callable[[Claim, WorkerSettings, Callable[[Progress], None]], JobResult]
"""Runs one attempt of a job, with the settings and where to report progress.

It reports at least once a second; whatever ``report`` raises must stop it and clean up, except for
``Superseded``, after which what is staged belongs to the next attempt.
"""

log = logging.getLogger(__name__)


def merge(claim: Claim, settings: WorkerSettings, report: Callable[[Progress], None]) -> JobResult:
    """Run a merge on the shard workers of the cluster."""
    request = MergeRequest.model_validate(claim.request)
    return run_merge(request, settings, report, job_id=claim.job_id, detached=True)


def search(claim: Claim, settings: WorkerSettings, report: Callable[[Progress], None]) -> JobResult:
    """Run a search on the shard workers of the cluster, and evaluators of its own."""
    request = SearchRequest.model_validate(claim.request)
    return run_search(request, settings, report, job_id=claim.job_id, detached=True)


def finetune(claim: Claim, settings: WorkerSettings, report: Callable[[Progress], None]) -> JobResult:
    """Run a fine-tune, or a grid of them, on actors of its own."""
    request = FinetuneRequest.model_validate(claim.request)
    return run_finetune(request, settings, report, job_id=claim.job_id)


def diagnose(claim: Claim, settings: WorkerSettings, report: Callable[[Progress], None]) -> JobResult:
    """Run a diagnosis on the shard workers of the cluster."""
    request = DiagnoseRequest.model_validate(claim.request)
    return run_diagnose(request, settings, report, job_id=claim.job_id, detached=True)


def warm_up(settings: WorkerSettings) -> None:
    """Start the shard workers, so that the first merge need not wait for them."""
    try:
        shard_actors(settings, detached=True)
    except JobFailed as error:
        log.warning("merges will fail: %s", error)  # each with this error, until the cluster has what it says


JOBS: Mapping[JobKind, JobFunction] = {
    "merge": merge,
    "search": search,
    "finetune": finetune,
    "diagnose": diagnose,
}


class JobProcess:
    """A process that runs one attempt of a job at a time, with its connections made beforehand."""

    def __init__(
        self,
        settings: Settings,
        jobs: Mapping[JobKind, JobFunction],
        prepare: Callable[[WorkerSettings], None],
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._store = Store.open(settings.database_url)
        prepare(settings)

    def ready(self) -> None:
        """Returns once the process can take a job."""

    def run(self, claim: Claim) -> None:
        """Run the claimed attempt and write its outcome to the store; a lost lease ends it without one."""
        try:
            self._run(claim)
        except (LeaseLost, Superseded) as lost:
            log.warning("%s", lost)

    def _run(self, claim: Claim) -> None:
        reporter = _Reporter(self._store, claim)
        try:
            result = self._jobs[claim.kind](claim, self._settings, reporter)
        except (LeaseLost, Superseded):
            raise
        except JobCancelled:
            self._store.cancelled(claim)
        except JobFailed as error:
            self._store.fail(claim, JobError(code=error.code, message=error.message, details=error.details))
        except InvalidRequest as error:
            details = {"errors": [item.model_dump(mode="json") for item in error.errors]}
            self._store.fail(claim, JobError(code=error.code, message=str(error), details=details))
        except Exception:
            log.exception("job %s, attempt %d", claim.job_id, claim.attempt)
            message = (
                f"the job met an error in the service itself; its operator finds {claim.job_id} in the log"
            )
            self._store.fail(claim, JobError(code="internal_error", message=message))
        else:
            self._store.succeed(claim, result, reporter.latest)


class _Reporter:
    """Writes progress to the store, at once on a change of phase and else at most every REPORT_SECONDS."""

    def __init__(self, store: Store, claim: Claim) -> None:
        self._store = store
        self._claim = claim
        self._phase: str | None = None
        self._due = 0.0
        self.latest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        self.latest = progress
        if progress.phase == self._phase and now < self._due:
            return
        self._phase, self._due = progress.phase, now + REPORT_SECONDS
        try:
            cancel = self._store.report(self._claim, progress)
        except LeaseLost as lost:
            raise Superseded(str(lost)) from None
        if cancel:
            raise JobCancelled(f"job {self._claim.job_id} was cancelled")


class Runner:
    """Keeps ``max_running_jobs`` job processes warm and gives each the oldest queued job, one at a time."""

    def __init__(
        self,
        settings: Settings,
        jobs: Mapping[JobKind, JobFunction],
        prepare: Callable[[WorkerSettings], None],
    ) -> None:
        self._settings = settings
        self._start = (settings, jobs, prepare)
        self._owner = f"runner-{uuid4().hex}"
        self._store = Store.open(settings.database_url)
        self._queued = threading.Semaphore(0)
        self._stopping = threading.Event()
        self._processes: dict[int, Any] = {}
        self._threads = [
            threading.Thread(target=self._serve, args=(slot,), daemon=True)
            for slot in range(settings.max_running_jobs)
        ]
        self._threads.append(threading.Thread(target=self._renew_leases, daemon=True))
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """A job was queued: look now instead of at the next poll."""
        self._queued.release()

    def shutdown(self) -> None:
        """Stop every job process and let go of the jobs, so that they start again elsewhere at once."""
        self._stopping.set()
        for process in list(self._processes.values()):
            ray.kill(process)
        for _ in self._threads:
            self._queued.release()
        for thread in self._threads:
            thread.join(timeout=5)
        self._store.leave(self._owner)

    def _renew_leases(self) -> None:
        while not self._stopping.wait(self._settings.lease_seconds / 5):
            if self._processes:  # without one nothing can run, and /readyz tells by the missing heartbeat
                self._heartbeat()

    def _heartbeat(self) -> None:
        try:
            self._store.heartbeat(self._owner, self._settings.lease_seconds)
        except SQLAlchemyError:
            log.exception("the heartbeat could not be written")

    def _serve(self, slot: int) -> None:
        """One slot: a job process, its jobs one after another, and another process when it dies."""
        while not self._stopping.is_set():
            try:
                process = self._start_process()
                self._processes[slot] = process
                self._heartbeat()
                while not self._stopping.is_set():
                    if not self._run_next(process):
                        self._queued.acquire(timeout=POLL_SECONDS)
            except (RayError, SQLAlchemyError) as error:
                if not self._stopping.is_set():
                    log.warning("job process %d is replaced: %s", slot, error)
                    self._stopping.wait(POLL_SECONDS)
            finally:
                self._processes.pop(slot, None)

    def _start_process(self) -> Any:
        process: Any = ray.remote(JobProcess).options(num_cpus=0).remote(*self._start)
        ray.get(process.ready.remote())
        return process

    def _run_next(self, process: Any) -> bool:
        """Claim a job and run it in ``process``; whether there was one."""
        settings = self._settings
        claim = self._store.claim(
            self._owner, lease_seconds=settings.lease_seconds, max_attempts=settings.max_attempts
        )
        if claim is None:
            return False
        try:
            ray.get(process.run.remote(claim))
        except RayError as error:
            died = isinstance(error, RayActorError)
            reason = "its process died" if died else "its outcome could not be stored"
            if not self._stopping.is_set():
                self._store.lost(claim, reason, max_attempts=settings.max_attempts)
            raise
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
