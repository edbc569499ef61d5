"""A service with a Ray of its own, whose processes can be found and killed, one or all."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from service.local import free_port
from service.store import Store

TITLES = {
    "shard worker": "ray::ShardActor",
    "job process": "ray::JobProcess",
    "runner": "ray::Runner",
    "replica": "ray::ServeReplica",
    "proxy": "ray::ProxyActor",
}
"""How Ray names the processes; while a method runs, the title goes on with its name."""
KINDS = (*TITLES, "machine")
STOP_SECONDS = 60
STARTS = 5


class Machine:
    """Everything that runs on behalf of one ``python -m service``."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "service.log"
        self._database = f"sqlite:///{directory / 'state' / 'jobs.sqlite3'}"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TAUMERGE_")}
        self._environment = kept | {
            "RAY_ADDRESS": "local",
            "PORT": str(port),
            "TAUMERGE_STATE_DIR": str(directory / "state"),
            "TAUMERGE_READ_ROOTS": str(directory),
            "TAUMERGE_WRITE_ROOTS": str(directory),
            "TAUMERGE_WORKERS": "2",
            "TAUMERGE_WORKER_MEMORY": "0",
            "TAUMERGE_LEASE_SECONDS": "5",
        }
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running()
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.crash()
        assert process.stdout is not None
        process.stdout.close()

    def start(self) -> None:
        """Start the service, on the state that it had, and wait until it is ready.

        As a supervisor does, again when it gives up: Ray allows its processes 30 s, which a busy machine may not keep.
        """
        for _ in range(STARTS):
            if self._started():
                return
        raise RuntimeError(f"the service did not start: {self._log.read_text()[-2000:]}")

    def _started(self) -> bool:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        return bool(self._process.stdout.readline())

    def states(self, job_id: str) -> list[str]:
        """Every state that the job has entered, as the job table tells."""
        store = Store.open(self._database)
        try:
            events = store.events_after(job_id, 0)
        finally:
            store.close()
        return [event.data["state"] for event in events if event.event == "state"]

    def kill(self, kind: str, choose: random.Random) -> bool:
        """Kill one process of ``kind``, a busy one where there are several; whether there was one."""
        if kind == "machine":
            self.crash()
            return True
        found = [(process, title) for process, title in self._titles() if title.startswith(TITLES[kind])]
        busy = [process for process, title in found if title.startswith(f"{TITLES[kind]}.")]
        candidates = busy or [process for process, _ in found]
        if not candidates:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            choose.choice(candidates).kill()
        return True

    def crash(self) -> None:
        """Kill everything at once, as a power cut does."""
        process = self._running()
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(tree, timeout=STOP_SECONDS)

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    def _titles(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in psutil.Process(self._running().pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append((process, " ".join(process.cmdline())))
        return found
