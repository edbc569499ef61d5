"""What Ray Tune's callbacks must bear."""

from __future__ import annotations

import pickle
import threading

from taumerge.schemas import Progress
from workers.tuning import Watch


class Idle(Watch):
    def progress(self) -> Progress:
        return Progress(phase="train")


def test_a_watch_whose_report_cannot_be_pickled_can() -> None:
    lock = threading.Lock()

    def report(progress: Progress) -> None:
        lock.acquire()

    pickle.dumps(Idle(report))
