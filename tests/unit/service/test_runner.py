"""The runner and its job processes without Ray: what an outage of the job store or of a disk leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import pytest
from ray.exceptions import RayActorError
from sqlalchemy.exc import OperationalError

from service import job_process, runner
from service.claims import Claim, Staged
from service.job_process import JobFunction, JobProcess, Reporter
from service.runner import Runner
from service.settings import Settings
from service.store import Store
from service.tables import open_engine
from taumerge.schemas import MergeResult, Progress, TensorCounts
from workers.merging import Superseded

LEASE = 15.0
RESULT = MergeResult(
    output="/out",
    files=[],
    tensors=TensorCounts(merged=1, copied=0, dropped=0),
    models=[],
    scaling=1.0,
    seconds={},
    bytes_read=0,
    bytes_written=0,
)


class Clock:
    """The job store's clock."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(open_engine(f"sqlite:///{tmp_path}/jobs.sqlite3"), clock)
    yield store
    store.close()


@pytest.fixture
def idle_runner(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner whose threads were never started, with a process that is none."""
    with monkeypatch.context() as making:
        making.setattr(threading.Thread, "start", lambda thread: None)
        making.setattr(Store, "open", lambda url: store)
        made = Runner(Settings(state_dir=tmp_path, max_running_jobs=1), {}, Mock())
    made._slots[0].process = Mock()
    return made


def away(*_arguments: Any, **_named: Any) -> NoReturn:
    raise OperationalError("UPDATE jobs", {}, Exception("server closed the connection"))


def claimed(store: Store) -> Claim:
    store.create("merge", {})
    claim = store.claim("runner", lease_seconds=LEASE, max_attempts=3)
    assert claim is not None
    return claim


def process(store: Store, job: JobFunction, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JobProcess:
    monkeypatch.setattr(Store, "open", lambda url: store)
    return JobProcess(Settings(state_dir=tmp_path), {"merge": job}, lambda settings: None)


def test_a_job_whose_loss_could_not_be_written_starts_again(
    idle_runner: Runner, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.create("merge", {})
    with monkeypatch.context() as outage:
        outage.setattr(runner.ray, "get", Mock(side_effect=RayActorError()))
        outage.setattr(store, "lost", away)
        with pytest.raises(OperationalError):
            idle_runner._run_next(idle_runner._slots[0])
    for _ in range(10):  # the heart beats on
        clock.now += timedelta(seconds=LEASE / 5)
        idle_runner._heartbeat()
    again = store.claim("runner", lease_seconds=LEASE, max_attempts=3)
    assert again is not None
    assert (again.job_id, again.attempt) == (job.id, 2)


def test_a_running_job_stays_with_its_runner(
    idle_runner: Runner, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("merge", {})

    def run(_reference: Any) -> None:
        for _ in range(10):
            clock.now += timedelta(seconds=LEASE / 5)
            idle_runner._heartbeat()
        assert store.claim("other", lease_seconds=LEASE, max_attempts=3) is None

    monkeypatch.setattr(runner.ray, "get", run)
    assert idle_runner._run_next(idle_runner._slots[0])


def test_a_short_outage_of_the_job_store_stops_no_job(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(claim: Claim, settings: Settings, report: Reporter) -> MergeResult:
        with monkeypatch.context() as outage:
            outage.setattr(store, "report", away)
            report(Progress(phase="aggregate", done=1))
        report(Progress(phase="commit", done=2))
        return RESULT

    claim = claimed(store)
    process(store, job, monkeypatch, tmp_path).run(claim)
    ended = store.get(claim.job_id)
    assert (ended.state, ended.progress) == ("succeeded", Progress(phase="commit", done=2))


def test_a_long_outage_gives_the_attempt_up_and_keeps_what_is_staged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[str] = []

    def job(claim: Claim, settings: Settings, report: Reporter) -> MergeResult:
        try:
            report(Progress(phase="aggregate", done=1))
        except Superseded as error:
            raised.append(str(error))
            raise
        return RESULT

    monkeypatch.setattr(job_process, "PATIENCE_SECONDS", 0.0)
    claim = claimed(store)
    ran = process(store, job, monkeypatch, tmp_path)
    with monkeypatch.context() as outage:
        outage.setattr(store, "report", away)
        ran.run(claim)
    assert "server closed the connection" in raised[0]
    assert store.get(claim.job_id).state == "running"  # until its lease has run out


@pytest.mark.parametrize("method", ["note_staging", "succeed"])
def test_an_attempt_that_cannot_write_is_lost_and_fails_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def job(claim: Claim, settings: Settings, report: Reporter) -> MergeResult:
        report.staged(Mock(place="/out", identity="1" * 64))
        return RESULT

    claim = claimed(store)
    ran = process(store, job, monkeypatch, tmp_path)
    with monkeypatch.context() as outage:
        outage.setattr(store, method, away)
        with pytest.raises(OperationalError):
            ran.run(claim)
    assert store.get(claim.job_id).state == "running"


def test_one_directory_that_cannot_be_removed_keeps_no_other(
    idle_runner: Runner, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claimed(store)
    outputs = [tmp_path / "first", tmp_path / "second"]
    for output in outputs:
        output.with_name(f".{output.name}.{'1' * 16}.partial").mkdir()
        store.note_staging(claim, Staged(str(output), "1" * 64))
    store.cancelled(claim)
    make: Callable[..., Any] = runner.staging_for

    def broken(place: Path, *arguments: Any) -> Any:
        if place.name == "first":
            raise OSError(5, "Input/output error")
        return make(place, *arguments)

    monkeypatch.setattr(runner, "staging_for", broken)
    idle_runner._sweep()
    assert [path.name for path in tmp_path.glob(".*.partial")] == [f".first.{'1' * 16}.partial"]
    assert [staged.output for staged in store.orphans()] == [str(outputs[0])]


def test_a_directory_of_a_name_that_no_disk_takes_is_swept(
    idle_runner: Runner, store: Store, tmp_path: Path
) -> None:
    claim = claimed(store)
    store.note_staging(claim, Staged(str(tmp_path / ("a" * 240)), "1" * 64))
    store.cancelled(claim)
    idle_runner._sweep()
    assert store.orphans() == []
