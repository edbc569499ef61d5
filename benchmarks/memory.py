"""Private memory of the shard workers, sampled while a merge runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.05
PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Yields a list that in the end holds, for each shard worker, the bytes by which its private memory grew."""
    growth: list[int] = []
    before = {pid: _private_bytes(pid) for pid in _shard_workers()}
    peak = dict(before)
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            for pid in before:
                peak[pid] = max(peak[pid], _private_bytes(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield growth
    finally:
        stop.set()
        thread.join()
        growth += [peak[pid] - before[pid] for pid in before]


def _shard_workers() -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "ShardActor" in " ".join(process.info["cmdline"] or [])
    ]


def _private_bytes(pid: int) -> int:
    _, resident, shared, *_ = (int(pages) for pages in Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * PAGE
