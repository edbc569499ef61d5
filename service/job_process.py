"""The process that runs the attempts of jobs, one at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError

from service import logs, policy
from service.claims import Claim, LeaseLost, Staged
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
from workers.checkpoints.writing import Staging
from workers.diagnostics import run_diagnose
from workers.finetuning import run_finetune
from workers.merging import Superseded, run_merge
from workers.merging.pool import shard_actors
from workers.search import run_search
from workers.settings import WorkerSettings

__all__ = ["JOBS", "JobFunction", "JobProcess", "Reporter", "warm_up"]

REPORT_SECONDS = 0.25
PATIENCE_SECONDS = 60.0
"""How long an attempt goes on while the job store does not answer; longer than a restart of it takes."""

log = logging.getLogger(__name__)


class Reporter:
    """Writes progress to the store, at once on a change of phase and else at most every REPORT_SECONDS.

    While the store does not answer the job goes on, for PATIENCE_SECONDS; then the attempt is given up.
    """

    def __init__(self, store: Store, claim: Claim) -> None:
        self._store = store
        self._claim = claim
        self._phase: str | None = None
        self._due = 0.0
        self._silent_since: float | None = None
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
        except SQLAlchemyError as error:
            self._silent_since = self._silent_since or now
            if time.monotonic() - self._silent_since > PATIENCE_SECONDS:
                # What is staged stays: the next attempt starts once the lease has run out.
                raise Superseded(f"the job store does not answer: {error}") from error
            log.warning("the progress could not be written: %s", error)
            return
        self._silent_since = None
        if cancel:
            raise JobCancelled(f"job {self._claim.job_id} was cancelled")

    def staged(self, staging: Staging) -> None:
        """Note a hidden directory before it is made; it is removed when no attempt goes on in it."""
        try:
            self._store.note_staging(self._claim, Staged(str(staging.place), staging.identity))
        except LeaseLost as lost:
            raise Superseded(str(lost)) from None


JobFunction = Callable[[Claim, Settings, Reporter], JobResult]
"""Runs one attempt of a job, with the settings and where to report progress.

It checks the request against the policy again: a link may have been set since the request was accepted.
It reports at least once a second; whatever ``report`` raises must stop it and clean up, except for
``Superseded``, after which what is staged belongs to the next attempt.
"""


def merge(claim: Claim, settings: Settings, report: Reporter) -> JobResult:
    """Run a merge on the shard workers of the cluster."""
    request = MergeRequest.model_validate(claim.request)
    policy.check_merge(request, settings)
    return run_merge(request, settings, report, job_id=claim.job_id, detached=True, staged=report.staged)


def search(claim: Claim, settings: Settings, report: Reporter) -> JobResult:
    """Run a search on the shard workers of the cluster, and evaluators of its own."""
    request = SearchRequest.model_validate(claim.request)
    policy.check_search(request, settings)
    return run_search(request, settings, report, job_id=claim.job_id, detached=True, staged=report.staged)


def finetune(claim: Claim, settings: Settings, report: Reporter) -> JobResult:
    """Run a fine-tune, or a grid of them, on actors of its own."""
    request = FinetuneRequest.model_validate(claim.request)
    policy.check_finetune(request, settings)
    return run_finetune(request, settings, report, job_id=claim.job_id, staged=report.staged)


def diagnose(claim: Claim, settings: Settings, report: Reporter) -> JobResult:
    """Run a diagnosis on the shard workers of the cluster."""
    request = DiagnoseRequest.model_validate(claim.request)
    policy.check_diagnose(request, settings)
    return run_diagnose(request, settings, report, job_id=claim.job_id, detached=True, staged=report.staged)


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
        logs.configure("job")
        self._settings = settings
        self._jobs = jobs
        self._store = Store.open(settings.database_url)
        prepare(settings)

    def ready(self) -> None:
        """Returns once the process can take a job."""

    def run(self, claim: Claim) -> None:
        """Run the claimed attempt and write its outcome to the store; a lost lease ends it without one."""
        with logs.of_job(claim.job_id):
            log.info("attempt %d of this %s starts", claim.attempt, claim.kind)
            try:
                self._run(claim)
            except (LeaseLost, Superseded) as lost:
                log.warning("%s", lost)

    def _run(self, claim: Claim) -> None:
        reporter = Reporter(self._store, claim)
        try:
            result = self._jobs[claim.kind](claim, self._settings, reporter)
        except (LeaseLost, Superseded, SQLAlchemyError):  # the last: the runner takes it for a lost attempt
            raise
        except JobCancelled:
            self._store.cancelled(claim)
            log.info("cancelled")
        except JobFailed as error:
            self._store.fail(claim, JobError(code=error.code, message=error.message, details=error.details))
            log.info("failed with %s: %s", error.code, error.message)
        except InvalidRequest as error:
            details = {"errors": [item.model_dump(mode="json") for item in error.errors]}
            self._store.fail(claim, JobError(code=error.code, message=str(error), details=details))
            log.info("failed with %s: %s", error.code, error)
        except Exception:
            log.exception("attempt %d", claim.attempt)
            message = (
                f"the job met an error in the service itself; its operator finds {claim.job_id} in the log"
            )
            self._store.fail(claim, JobError(code="internal_error", message=message))
        else:
            self._store.succeed(claim, result, reporter.latest)
            log.info("succeeded")
