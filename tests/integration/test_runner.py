"""The runner on a real Ray: warm processes, crashes, cancellation, lost leases, clean stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import ray

from service.runner import JobFunction, find_runner, start_runner, stop_runner
from service.settings import Settings
from service.store import Store
from service.tables import open_engine
from taumerge.schemas import Job, MergeResult

LEASE_SECONDS = 2.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def script(directory: Path) -> JobFunction:
    """A job function that does what its request says, and tells the test about it in files.

    It is defined in here so that Ray sends its code along: job processes cannot import this file.
    """

    def job(claim: Any, settings: Any, report: Any) -> Any:
        import os
        import signal
        import time

        from taumerge.errors import InvalidRequest, JobFailed
        from taumerge.schemas import MergeResult, Progress, TensorCounts
        from workers.checkpoints.writing import Staging

        run = f"{claim.request['name']}.{claim.attempt}"
        (directory / f"{run}.pid").write_text(str(os.getpid()))
        action = claim.request["do"]
        if action == "fail":
            raise JobFailed("nonfinite", "NaN in models.0", {"model": 0})
        if action == "refuse":
            raise InvalidRequest.at(["output"], "output_exists", "it exists")
        if action == "break":
            raise RuntimeError("secret")
        if action == "litter":
            staging = Staging(directory / "out", "0" * 64)
            report.staged(staging)
            staging.create(())
        if action in ("die", "litter"):
            os.kill(os.getpid(), signal.SIGKILL)
        done = 0
        while action == "wait" and not (directory / f"{claim.request['name']}.go").exists():
            done += 1
            try:
                report(Progress(phase="aggregate", done=done, total=1000))
            except Exception as error:
                (directory / f"{run}.stopped").write_text(type(error).__name__)
                raise
            time.sleep(0.02)
        report(Progress(phase="commit", done=1, total=1))
        return MergeResult(
            output=run,
            files=[],
            tensors=TensorCounts(merged=1, copied=0, dropped=0),
            models=[],
            scaling=1.0,
            seconds={},
            bytes_read=0,
            bytes_written=0,
        )

    return job


class Bench:
    """A store, the directory where job functions leave their traces, and a runner."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = Settings(
            state_dir=directory / "state", lease_seconds=LEASE_SECONDS, max_running_jobs=2, max_attempts=2
        )
        self.store = Store.open(self.settings.database_url)

    def start(self) -> Any:
        runner = start_runner(self.settings, {"merge": script(self.directory)}, lambda settings: None)
        eventually(lambda: self.store.runner_seen_at() is not None, "the runner is ready", seconds=60)
        return runner

    def submit(self, name: str, do: str) -> Job:
        job = self.store.create("merge", {"name": name, "do": do})
        runner = find_runner()
        assert runner is not None
        runner.wake.remote("merge")
        return job

    def started(self, name: str, attempt: int = 1, seconds: float = 30) -> int:
        """Waits until the attempt runs; its process id."""
        path = self.directory / f"{name}.{attempt}.pid"
        eventually(lambda: path.exists() and path.read_text() != "", f"{name} runs", seconds)
        return int(path.read_text())

    def go(self, name: str) -> None:
        (self.directory / f"{name}.go").touch()

    def ended(self, job: Job, seconds: float = 30) -> Job:
        eventually(lambda: self.store.get(job.id).ended, f"{job.request['name']} ends", seconds)
        return self.store.get(job.id)


def eventually(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def bench(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("runner"))
    bench.start()
    yield bench
    stop_runner()
    bench.store.close()


def test_a_job_runs_in_a_warm_process(bench: Bench) -> None:
    job = bench.ended(bench.submit("first", "succeed"))
    assert (job.state, job.attempt, job.error) == ("succeeded", 1, None)
    assert isinstance(job.result, MergeResult)
    assert job.progress is not None
    assert job.progress.phase == "commit"
    bench.ended(bench.submit("second", "succeed"))
    bench.ended(bench.submit("third", "succeed"))
    assert len({bench.started(name) for name in ("first", "second", "third")}) <= 2


@pytest.mark.parametrize(
    ("do", "code", "message", "details"),
    [
        ("fail", "nonfinite", "NaN in models.0", {"model": 0}),
        (
            "refuse",
            "invalid_request",
            "output: it exists",
            {"errors": [{"loc": ["output"], "code": "output_exists", "msg": "it exists"}]},
        ),
    ],
)
def test_errors_of_a_job_are_kept(bench: Bench, do: str, code: str, message: str, details: Any) -> None:
    job = bench.ended(bench.submit(do, do))
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert (job.error.code, job.error.message, job.error.details) == (code, message, details)


def test_an_unexpected_error_shows_no_trace(bench: Bench) -> None:
    job = bench.ended(bench.submit("break", "break"))
    assert job.error is not None
    assert (job.error.code, job.error.details) == ("internal_error", {})
    assert job.id in job.error.message
    assert "secret" not in job.error.message


def test_a_killed_process_takes_only_its_own_job(bench: Bench) -> None:
    hit, spared = bench.submit("hit", "wait"), bench.submit("spared", "wait")
    bench.started("spared")
    os.kill(bench.started("hit"), signal.SIGKILL)
    bench.started("hit", attempt=2)
    for name in ("hit", "spared"):
        bench.go(name)
    retried, other = bench.ended(hit), bench.ended(spared)
    assert (retried.state, retried.attempt) == ("succeeded", 2)
    assert retried.result is not None
    assert retried.result.output == "hit.2"
    assert (other.state, other.attempt) == ("succeeded", 1)
    messages = [
        event.data["message"] for event in bench.store.events_after(hit.id, 0) if event.event == "log"
    ]
    assert messages == ["back in the queue: its process died", "attempt 2 starts"]


def test_a_job_that_kills_its_process_fails_after_its_attempts(bench: Bench) -> None:
    job = bench.ended(bench.submit("poison", "die"))
    assert (job.state, job.attempt) == ("failed", 2)
    assert job.error is not None
    assert job.error.code == "worker_lost"


def test_what_a_failed_job_leaves_behind_is_removed_and_nothing_else(bench: Bench) -> None:
    other = bench.directory / f".out.{'1' * 16}.partial"
    other.mkdir()
    job = bench.ended(bench.submit("litter", "litter"), seconds=120)
    assert (job.state, job.attempt) == ("failed", 2)
    hidden = bench.directory / f".out.{'0' * 16}.partial"
    eventually(lambda: not hidden.exists() and not bench.store.orphans(), "it is swept", 60)
    assert other.exists()


def test_cancelling_a_running_job_takes_effect_within_two_seconds(bench: Bench) -> None:
    job = bench.submit("cancelled", "wait")
    bench.started("cancelled")
    bench.store.request_cancel(job.id)
    assert bench.ended(job, seconds=2).state == "cancelled"
    assert (bench.directory / "cancelled.1.stopped").read_text() == "JobCancelled"


def test_a_lost_lease_stops_the_job_without_an_outcome(bench: Bench) -> None:
    job = bench.submit("stolen", "wait")
    bench.started("stolen")
    engine = open_engine(bench.settings.database_url)
    thief = Store(engine, lambda: datetime.now(UTC) + timedelta(seconds=10 * LEASE_SECONDS))
    claim = thief.claim("thief", lease_seconds=600, max_attempts=9)
    engine.dispose()
    assert claim is not None
    assert (claim.job_id, claim.attempt) == (job.id, 2)
    stopped = bench.directory / "stolen.1.stopped"
    eventually(lambda: stopped.exists() and stopped.read_text() == "Superseded", "attempt 1 stops", 10)
    assert bench.ended(bench.submit("after", "succeed")).state == "succeeded"  # the slot is free again
    running = bench.store.get(job.id)
    assert (running.state, running.attempt) == ("running", 2)
    bench.store.cancelled(claim)


def test_more_jobs_than_processes_wait_their_turn(bench: Bench) -> None:
    jobs = [bench.submit(f"turn-{index}", "wait") for index in range(3)]
    for name in ("turn-0", "turn-1"):
        bench.started(name)
    assert bench.store.get(jobs[2].id).state == "queued"
    bench.go("turn-0")
    bench.started("turn-2")
    for name in ("turn-1", "turn-2"):
        bench.go(name)
    assert [bench.ended(job).state for job in jobs] == ["succeeded"] * 3


def test_a_job_outlives_the_runner_that_crashed(bench: Bench) -> None:
    job = bench.submit("orphan", "wait")
    process = bench.started("orphan")
    ray.kill(find_runner(), no_restart=False)
    bench.started("orphan", attempt=2, seconds=60)
    assert not process_runs(process)
    bench.go("orphan")
    assert (bench.ended(job).state, bench.store.get(job.id).attempt) == ("succeeded", 2)


def test_a_clean_stop_gives_its_jobs_back_at_once(bench: Bench) -> None:
    job = bench.submit("interrupted", "wait")
    process = bench.started("interrupted")
    stop_runner()
    assert bench.store.get(job.id).state == "queued"
    assert find_runner() is None
    eventually(lambda: not process_runs(process), "the job process is gone", 10)
    bench.start()
    bench.started("interrupted", attempt=2)
    bench.go("interrupted")
    assert bench.ended(job).state == "succeeded"


def process_runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except FileNotFoundError:
        return False
    return not state.startswith("Z")
