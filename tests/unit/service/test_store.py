"""The job table: the queue, its fences, and what clients see of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.claims import Claim, IdempotencyConflict, JobEnded, LeaseLost, QueueFull, Staged, UnknownJob
from service.store import Store
from service.tables import open_engine
from taumerge.errors import InvalidRequest
from taumerge.schemas import FinetuneResult, JobError, MergeResult, Progress, TensorCounts, TrialResult

LEASE = 10.0
REQUEST: dict[str, Any] = {"base": "/models/base", "models": [{"uri": "/models/a"}]}
ERROR = JobError(code="nonfinite", message="NaN in model 0", details={"model": 0})


def result(**changes: Any) -> MergeResult:
    fields: dict[str, Any] = {
        "output": "/models/out",
        "files": [],
        "tensors": TensorCounts(merged=1, copied=0, dropped=0),
        "models": [],
        "merged_norm": 2.0,
        "scaling": 1.0,
        "seconds": {"plan": 0.5, "aggregate": 1.5},
        "bytes_read": 100,
        "bytes_written": 40,
    }
    return MergeResult(**{**fields, **changes})


def claim(store: Store, owner: str = "one", max_attempts: int = 3) -> Claim | None:
    return store.claim(owner, lease_seconds=LEASE, max_attempts=max_attempts)


def claimed(store: Store, owner: str = "one") -> Claim:
    taken = claim(store, owner)
    assert taken is not None
    return taken


def states(store: Store, job_id: str) -> list[str]:
    return [event.data["state"] for event in store.events_after(job_id, 0) if event.event == "state"]


# ------------------------------------------------------------------------------------------- clients


def test_a_created_job_is_queued_and_found(store: Store, clock: Any) -> None:
    job = store.create("merge", REQUEST)
    assert job.id.startswith("merge-")
    assert len(job.id) == len("merge-") + 26
    assert (job.state, job.attempt, job.request, job.created_at) == ("queued", 0, REQUEST, clock.now)
    assert store.get(job.id) == job
    with pytest.raises(UnknownJob, match="no job merge-x"):
        store.get("merge-x")


def test_ids_of_one_process_sort_by_age(store: Store) -> None:
    ids = [store.create("merge", REQUEST).id for _ in range(50)]
    assert ids == sorted(ids)


def test_the_same_key_and_request_give_the_same_job(store: Store) -> None:
    first = store.create("merge", REQUEST, "key")
    reordered = dict(reversed(REQUEST.items()))
    assert store.create("merge", reordered, "key") == first
    assert store.find_by_key("key", "merge", REQUEST) == first
    assert store.find_by_key("other", "merge", REQUEST) is None
    with pytest.raises(IdempotencyConflict, match=first.id):
        store.create("merge", {**REQUEST, "scaling": 2.0}, "key")
    assert len(store.list(limit=10)[0]) == 1


def test_concurrent_requests_with_one_key_make_one_job(store: Store) -> None:
    made: list[str] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        made.append(store.create("merge", REQUEST, "key").id)

    run_in_threads(create, 8)
    assert len(made) == 8
    assert len(set(made)) == 1


def test_only_so_many_jobs_may_wait(store: Store) -> None:
    first = store.create("merge", REQUEST, "key", max_queued=2)
    store.create("merge", REQUEST, max_queued=2)
    with pytest.raises(QueueFull, match="2 jobs are waiting"):
        store.create("merge", REQUEST, max_queued=2)
    assert store.create("merge", REQUEST, "key", max_queued=2) == first
    claimed(store)
    store.create("merge", REQUEST, max_queued=2)
    assert len(store.list(limit=10)[0]) == 3


def test_the_limit_of_the_queue_is_exact_under_concurrency(store: Store) -> None:
    refused: list[QueueFull] = []
    barrier = threading.Barrier(8)

    def create() -> None:
        barrier.wait()
        for _ in range(5):
            try:
                store.create("merge", REQUEST, max_queued=13)
            except QueueFull as full:
                refused.append(full)

    run_in_threads(create, 8)
    assert len(refused) == 40 - 13
    assert store.count_jobs() == {("merge", "queued"): 13}


def test_pages_are_newest_first_and_complete(store: Store, clock: Any) -> None:
    ids = []
    for index in range(7):
        ids.append(store.create("merge", REQUEST).id)
        clock.advance(index % 2)  # pairs of jobs of the same instant
    seen: list[str] = []
    cursor = None
    sizes = []
    while True:
        page, cursor = store.list(limit=3, cursor=cursor)
        seen += [job.id for job in page]
        sizes.append(len(page))
        if cursor is None:
            break
        store.create("merge", REQUEST)  # what comes later does not shift the pages
    assert seen == ids[::-1]
    assert sizes == [3, 3, 1]


def test_a_full_last_page_has_no_cursor(store: Store) -> None:
    store.create("merge", REQUEST)
    store.create("merge", REQUEST)
    assert store.list(limit=2)[1] is None


def test_listing_filters_by_state(store: Store) -> None:
    queued = store.create("merge", REQUEST)
    done = store.create("merge", REQUEST)
    store.request_cancel(done.id)
    assert [job.id for job in store.list(limit=10, state="queued")[0]] == [queued.id]
    assert [job.id for job in store.list(limit=10, state="cancelled", kind="merge")[0]] == [done.id]


def test_a_foreign_cursor_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequest) as refused:
        store.list(limit=1, cursor="merge-x")
    assert refused.value.errors[0].loc == ("query", "cursor")


def test_a_queued_job_is_cancelled_at_once(store: Store, clock: Any) -> None:
    job = store.create("merge", REQUEST)
    cancelled = store.request_cancel(job.id)
    assert (cancelled.state, cancelled.finished_at) == ("cancelled", clock.now)
    assert claim(store) is None
    assert states(store, job.id) == ["queued", "cancelled"]
    with pytest.raises(JobEnded, match="was cancelled"):
        store.request_cancel(job.id)
    with pytest.raises(UnknownJob):
        store.request_cancel("merge-x")


def test_a_running_job_hears_of_its_cancellation(store: Store) -> None:
    job = store.create("merge", REQUEST)
    attempt = claimed(store)
    assert store.report(attempt, Progress(phase="measure")) is False
    assert store.request_cancel(job.id).state == "running"
    assert store.request_cancel(job.id).state == "running"  # asking twice changes nothing
    assert store.report(attempt, Progress(phase="measure", done=1)) is True
    store.cancelled(attempt)
    assert store.get(job.id).state == "cancelled"


# ------------------------------------------------------------------------------------------- runners


def test_the_oldest_queued_job_is_claimed_first(store: Store, clock: Any) -> None:
    ids = []
    for _ in range(3):
        ids.append(store.create("merge", REQUEST).id)
        clock.advance(1)
    assert [claimed(store).job_id for _ in ids] == ids
    assert claim(store) is None
    job = store.get(ids[0])
    assert (job.state, job.attempt, job.started_at) == ("running", 1, clock.now)


def test_a_runner_may_take_some_kinds_only(store: Store, clock: Any) -> None:
    long = store.create("finetune", REQUEST)
    clock.advance(1)
    short = store.create("merge", REQUEST)
    taken = store.claim("one", lease_seconds=LEASE, max_attempts=3, kinds=("merge", "diagnose"))
    assert taken is not None
    assert taken.job_id == short.id
    assert store.claim("one", lease_seconds=LEASE, max_attempts=3, kinds=("merge", "diagnose")) is None
    assert claimed(store).job_id == long.id


def test_jobs_with_the_same_output_run_one_after_the_other(store: Store) -> None:
    first, second, other = (
        store.create("merge", REQUEST | {"output": output}).id
        for output in ("s3://b/x", "s3://b/x", "s3://b/y")
    )
    store.create("merge", REQUEST)
    running = [claimed(store) for _ in range(3)]
    assert [one.job_id for one in running[:2]] == [first, other]
    assert claim(store) is None
    store.succeed(running[0], result())
    assert claimed(store).job_id == second


def test_each_job_is_claimed_once_by_threads(store: Store) -> None:
    ids = {store.create("merge", REQUEST).id for _ in range(40)}
    taken: list[str] = []

    def work() -> None:
        owner = threading.current_thread().name
        while (attempt := claim(store, owner)) is not None:
            taken.append(attempt.job_id)

    run_in_threads(work, 6)
    assert len(taken) == len(ids)
    assert set(taken) == ids


def test_each_job_is_claimed_once_by_processes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"  # PostgreSQL sees connections only, as the threads above have
    store = Store.open(url)
    ids = [store.create("merge", REQUEST).id for _ in range(40)]
    program = """
import sys
from service.store import Store
store = Store.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while (claim := store.claim(sys.argv[2], lease_seconds=1e6, max_attempts=3)) is not None:
    print(claim.job_id)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, url, owner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for owner in ("one", "two")
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n", timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("".join(outputs).split()) == sorted(ids)
    store.close()


def test_a_heartbeat_keeps_the_lease(store: Store, clock: Any) -> None:
    store.create("merge", REQUEST)
    attempt = claimed(store)
    clock.advance(LEASE - 1)
    store.heartbeat("one", [attempt], LEASE)
    clock.advance(LEASE - 1)
    assert claim(store, "two") is None
    store.report(attempt, Progress(phase="aggregate"))
    assert store.runner_seen_at() == clock.now - timedelta(seconds=LEASE - 1)


def test_a_heartbeat_keeps_nothing_that_its_runner_knows_nothing_of(store: Store, clock: Any) -> None:
    forgotten = store.create("merge", REQUEST)
    claimed(store)  # the answer never reached the runner
    store.create("merge", REQUEST)
    held = claimed(store)
    for _ in range(2):
        clock.advance(LEASE - 1)
        store.heartbeat("one", [held], LEASE)
    again = claimed(store, "one")
    assert (again.job_id, again.attempt) == (forgotten.id, 2)
    assert claim(store, "two") is None


def test_an_expired_lease_goes_to_the_next_attempt_and_fences_the_last(store: Store, clock: Any) -> None:
    job = store.create("merge", REQUEST)
    stale = claimed(store)
    store.report(stale, Progress(phase="aggregate", done=5))
    clock.advance(LEASE + 1)
    store.heartbeat("two", [], LEASE)
    fresh = claimed(store, "two")
    assert (fresh.job_id, fresh.attempt, fresh.owner) == (job.id, 2, "two")
    before = store.get(job.id)
    assert before.progress == Progress(
        phase="aggregate", done=5
    )  # as far as it was, until the attempt says more

    with pytest.raises(LeaseLost, match="attempt 1"):
        store.report(stale, Progress(phase="aggregate", done=6))
    with pytest.raises(LeaseLost):
        store.succeed(stale, result())
    with pytest.raises(LeaseLost):
        store.fail(stale, ERROR)
    with pytest.raises(LeaseLost):
        store.cancelled(stale)
    store.lost(stale, "its process died", max_attempts=3)
    assert store.get(job.id) == before
    assert store.totals() == {("lease_losses", ""): 1.0, ("retries", "merge"): 1.0}

    store.succeed(fresh, result())
    assert store.get(job.id).state == "succeeded"
    assert states(store, job.id) == ["queued", "running", "queued", "running", "succeeded"]


def test_the_same_owner_cannot_write_for_an_earlier_attempt(store: Store, clock: Any) -> None:
    store.create("merge", REQUEST)
    stale = claimed(store)
    clock.advance(LEASE + 1)
    assert claimed(store).attempt == 2
    with pytest.raises(LeaseLost):
        store.succeed(stale, result())


def test_an_ended_job_takes_no_more_writes(store: Store) -> None:
    job = store.create("merge", REQUEST)
    attempt = claimed(store)
    store.fail(attempt, ERROR)
    with pytest.raises(LeaseLost):
        store.succeed(attempt, result())
    ended = store.get(job.id)
    assert (ended.state, ended.error, ended.result) == ("failed", ERROR, None)


def test_a_job_fails_after_its_last_attempt_lost_its_process(store: Store, clock: Any) -> None:
    job = store.create("merge", REQUEST)
    store.lost(claimed(store), "its process died", max_attempts=2)
    assert store.get(job.id).state == "queued"
    assert claimed(store).attempt == 2
    clock.advance(LEASE + 1)
    assert claim(store, max_attempts=2) is None
    ended = store.get(job.id)
    assert (ended.state, ended.attempt) == ("failed", 2)
    assert ended.error is not None
    assert ended.error.code == "worker_lost"
    assert "2 attempts" in ended.error.message
    assert "no sign of life" in ended.error.message


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(store: Store) -> None:
    job = store.create("merge", REQUEST)
    attempt = claimed(store)
    store.request_cancel(job.id)
    store.lost(attempt, "its process died", max_attempts=3)
    assert store.get(job.id).state == "cancelled"


def test_a_runner_that_leaves_gives_its_jobs_back(store: Store) -> None:
    mine, other = store.create("merge", REQUEST), store.create("merge", REQUEST)
    for _ in range(3):  # being stopped is no failure, however often
        attempt = claimed(store, "one")
        assert attempt.job_id == mine.id
        store.heartbeat("one", [attempt], LEASE)
        store.leave("one")
    attempt = claimed(store, "two")
    assert claimed(store, "two").job_id == other.id
    store.leave("one")
    assert store.get(mine.id).state == store.get(other.id).state == "running"
    assert store.runner_seen_at() is None
    store.lost(attempt, "its process died", max_attempts=2)  # the first that is lost, though the fourth
    assert (store.get(mine.id).state, store.get(mine.id).attempt) == ("queued", 4)
    store.lost(claimed(store), "its process died", max_attempts=2)
    assert store.get(mine.id).state == "failed"


# -------------------------------------------------------------------------------------- housekeeping


def test_jobs_are_forgotten_some_time_after_their_end(store: Store, clock: Any) -> None:
    for _ in range(3):
        store.create("merge", REQUEST, f"key-{clock.now}")
        clock.advance(10)
    old, recent = claimed(store), claimed(store)
    store.fail(old, ERROR)
    clock.advance(10)
    store.fail(recent, ERROR)
    assert store.forget(clock.now - timedelta(seconds=5)) == 1
    with pytest.raises(UnknownJob):
        store.get(old.job_id)
    assert store.events_after(old.job_id, 0) == []
    assert store.count_jobs() == {("merge", "failed"): 1, ("merge", "queued"): 1}
    assert store.forget(clock.now + timedelta(days=1000)) == 1  # the queued one stays


def test_what_nobody_goes_on_with_is_an_orphan(store: Store, clock: Any) -> None:
    store.create("merge", REQUEST)
    first = claimed(store)
    merged, searched = Staged("/out/merged", "1" * 64), Staged("/out/best", "2" * 64)
    store.note_staging(first, merged)
    store.lost(first, "its process died", max_attempts=2)
    assert store.orphans() == []  # the next attempt goes on in it
    with pytest.raises(LeaseLost):
        store.note_staging(first, merged)
    second = claimed(store)
    store.note_staging(second, merged)
    store.lost(second, "its process died", max_attempts=2)
    assert store.orphans() == [merged]
    store.swept(merged)
    assert store.orphans() == []

    for _ in range(2):  # two searches that are the same
        store.create("search", REQUEST)
        search = claimed(store)
        store.note_staging(search, searched)
        store.fail(search, ERROR)
        clock.advance(10)
    assert store.orphans() == []  # a third one would go on from it
    store.forget(clock.now - timedelta(seconds=15))
    assert store.orphans() == []
    store.forget(clock.now)
    assert store.orphans() == [searched]


# -------------------------------------------------------------------------------- outcome and events


def test_numbers_that_json_does_not_have_are_null(store: Store) -> None:
    store.create("finetune", REQUEST)
    attempt = claimed(store)
    measured = {"loss": math.nan, "learning_rate": 0.1}
    assert not store.report(attempt, Progress(phase="train", metrics=measured))
    (event,) = [one for one in store.events_after(attempt.job_id, 0) if one.event == "progress"]
    assert event.data["metrics"] == {"loss": None, "learning_rate": 0.1}
    trial = TrialResult(
        output="/out", learning_rate=0.1, steps=1, loss=math.inf, validation={"loss": math.nan}
    )
    store.succeed(attempt, FinetuneResult(output="/out", trials=[trial], seconds={}))
    ended = store.get(attempt.job_id)
    assert isinstance(ended.result, FinetuneResult)
    assert ended.result.trials[0].loss is None
    assert math.isnan(ended.result.trials[0].validation["loss"])
    shown = json.loads(ended.model_dump_json())
    assert shown["progress"]["metrics"]["loss"] is None
    assert shown["result"]["trials"][0]["validation"] == {"loss": None}

    store.create("merge", REQUEST)
    failed = claimed(store)
    store.fail(failed, JobError(code="training_diverged", message="NaN", details={"loss": math.nan}))
    error = store.get(failed.job_id).error
    assert error is not None
    assert error.details == {"loss": None}


def test_the_result_is_kept_and_counted(store: Store, clock: Any) -> None:
    for _ in range(2):
        store.create("merge", REQUEST)
        attempt = claimed(store)
        clock.advance(3)
        store.succeed(attempt, result(), Progress(phase="commit", done=4, total=4))
    job = store.get(attempt.job_id)
    assert job.result == result()
    assert job.progress == Progress(phase="commit", done=4, total=4)
    assert job.started_at is not None
    assert job.finished_at == job.started_at + timedelta(seconds=3)
    assert store.totals() == {
        ("bytes", "read"): 200.0,
        ("bytes", "written"): 80.0,
        ("seconds", "plan"): 1.0,
        ("seconds", "aggregate"): 3.0,
    }
    assert store.count_jobs() == {("merge", "succeeded"): 2}


def test_events_are_ordered_resumable_and_bounded(store: Store) -> None:
    job, other = store.create("merge", REQUEST), store.create("merge", REQUEST)
    attempt = claimed(store)
    for done in range(20):
        store.report(attempt, Progress(phase="aggregate", done=done, total=20))
    store.succeed(attempt, result())
    events = store.events_after(job.id, 0)
    assert [event.event for event in events] == ["state", "state", "progress", "state"]
    assert events[2].data["done"] == 19
    assert [event.id for event in events] == sorted({event.id for event in events})
    assert store.events_after(job.id, events[1].id) == events[2:]
    assert store.events_after(job.id, events[-1].id) == []
    assert states(store, other.id) == ["queued"]


def test_no_event_comes_after_any_that_a_client_may_name(store: Store) -> None:
    job = store.create("merge", REQUEST)
    assert store.events_after(job.id, 2**63 - 1) == []


def test_jobs_survive_a_restart(store: Store, database_url: str) -> None:
    job = store.create("merge", REQUEST, "key")
    again = Store.open(database_url)
    try:
        assert again.get(job.id) == job
    finally:
        again.close()


def test_an_accepted_job_is_on_disk_before_the_answer(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    engine.dispose()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def run_in_threads(work: Any, count: int) -> None:
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
