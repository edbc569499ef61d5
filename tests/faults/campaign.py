"""Runs of the campaign: a merge each, a kill at a random moment, and everything that must hold afterwards."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taumerge import Client
from taumerge.errors import ApiError, ServiceUnreachable
from taumerge.schemas import Job, MergeResult

from .machine import KINDS, Machine
from .models import METHODS, merge_body, write_models

PATIENCE_SECONDS = 180.0
SWEEP_SECONDS = 30.0
ENDINGS = {"succeeded", "failed", "cancelled"}
ORDER = (*KINDS[:-1], *KINDS[:-1], KINDS[-1])
"""Killing everything takes longest to recover from, so it comes half as often."""


@dataclass
class Outcome:
    """What came of one run."""

    run: int
    kind: str
    method: str
    delay: float
    """Seconds from the POST to the kill."""
    hit: str = ""
    """What the job was doing when the kill came: not accepted, queued, a phase, or ended."""
    finished: int = 0
    """Output files that were complete by then."""
    attempt: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The outcome as a line of JSON."""
        return json.dumps(asdict(self))


def campaign(directory: Path, runs: int, seed: int) -> Iterator[Outcome]:
    """``runs`` merges on one service in ``directory``, each with a kill; kinds and rules take turns."""
    models = directory / "models"
    write_models(models)
    with Machine(directory) as machine, Client(machine.url, timeout=30, retries=1) as client:
        undisturbed = {}
        for method in METHODS:
            begun = time.monotonic()
            job = client.merge(merge_body(models, method, directory / "undisturbed" / method["name"]))
            result = client.wait(job.id, timeout=PATIENCE_SECONDS).result
            assert isinstance(result, MergeResult)
            digests = {file.name: file.sha256 for file in result.files}
            undisturbed[method["name"]] = digests, time.monotonic() - begun
        for run in range(runs):
            choose = random.Random(f"{seed} {run}")
            method = METHODS[run % len(METHODS)]
            digests, seconds = undisturbed[method["name"]]
            kind = ORDER[(run + seed) % len(ORDER)]
            outcome = Outcome(run, kind, method["name"], round(choose.uniform(0, 1.1 * seconds), 3))
            body = merge_body(models, method, directory / f"run-{run}" / "merged")
            _Run(machine, client, body, digests, outcome, choose).carry_out()
            yield outcome


class _Run:
    def __init__(
        self,
        machine: Machine,
        client: Client,
        body: dict[str, Any],
        digests: dict[str, str],
        outcome: Outcome,
        choose: random.Random,
    ) -> None:
        self._machine, self._client, self._choose = machine, client, choose
        self._body, self._digests, self._outcome = body, digests, outcome
        self._output = Path(body["output"])
        self._key = f"{self._output}-{time.time_ns()}"

    def carry_out(self) -> None:
        begun = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            posted = pool.submit(self._patiently, self._post)
            time.sleep(self._outcome.delay)  # the random moment itself
            self._outcome.hit = self._seen() if posted.done() else "not accepted"
            finished = _finished(self._output)
            if not self._machine.kill(self._outcome.kind, self._choose):
                self._outcome.hit = f"no {self._outcome.kind} was there"
            if self._outcome.kind == "machine":
                self._machine.start()
            job_id = posted.result().id
        job = self._patiently(lambda: self._ended(job_id))
        self._outcome.seconds = round(time.monotonic() - begun, 1)
        self._outcome.attempt, self._outcome.finished = job.attempt, len(finished)
        self._check(job, finished)

    def _post(self) -> Job:
        return self._client.merge(self._body, idempotency_key=self._key)

    def _seen(self) -> str:
        """What the job is doing, as far as it can be told."""
        try:
            job = next(iter(self._client.jobs(limit=1)))
        except (ServiceUnreachable, ApiError):
            return "unknown"
        return job.progress.phase if job.state == "running" and job.progress else job.state

    def _ended(self, job_id: str) -> Job:
        job = self._client.job(job_id)
        if not job.ended:
            raise ServiceUnreachable("it has not ended")
        return job

    def _patiently(self, call: Callable[[], Job]) -> Job:
        """As a client that does not give up: a killed replica answers nothing, or 500 by its proxy."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call()
            except (ServiceUnreachable, ApiError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _check(self, job: Job, finished: dict[str, tuple[int, int]]) -> None:
        wrong = self._outcome.wrong
        if not isinstance(job.result, MergeResult):
            wrong.append(f"it {job.state}: {job.error}")
            return
        if {file.name: file.sha256 for file in job.result.files} != self._digests:
            wrong.append("the reported digests are others")
        on_disk = {path.name: path for path in self._output.glob("*.safetensors")}
        weights = {name for name in self._digests if name.endswith(".safetensors")}
        if {name: _sha256(path) for name, path in on_disk.items()} != {n: self._digests[n] for n in weights}:
            wrong.append("the bytes on disk are others")
        if {name: _age(self._output / name) for name in finished} != finished:
            wrong.append("a finished file was written again")
        if json.loads((self._output / "taumerge.json").read_text())["job"] != job.id:
            wrong.append("the receipt is another job's")
        same = [one for one in self._client.jobs(limit=20) if one.request["output"] == self._body["output"]]
        if len(same) != 1:
            wrong.append(f"{len(same)} jobs were made")
        states = self._machine.states(job.id)
        if [state for state in states if state in ENDINGS] != ["succeeded"]:
            wrong.append(f"its states were {states}")
        deadline = time.monotonic() + SWEEP_SECONDS
        while left := [path.name for path in self._output.parent.iterdir() if path != self._output]:
            if time.monotonic() > deadline:
                wrong.append(f"left behind: {left}")
                return
            time.sleep(0.2)


def _finished(output: Path) -> dict[str, tuple[int, int]]:
    """Output files that are recorded as complete: their inode and the time of their last write."""
    found = {}
    for record in output.parent.glob(f".{output.name}.*.partial/.taumerge-journal/*.safetensors.json"):
        path = record.parent.parent / record.name.removesuffix(".json")
        try:
            found[path.name] = _age(path)
        except FileNotFoundError:  # committed at this moment
            return {}
    return found


def _age(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
