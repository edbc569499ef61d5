"""The actor of a training that has ended, kept for a moment for the next one.

An actor needs seconds to import torch and the model's library, more than a small training takes. One that has nothing
to do for ``IDLE_SECONDS`` ends, so that its CPU or GPU is free for others.
"""

from __future__ import annotations

import threading
from typing import Any

import ray

IDLE_SECONDS = 5.0

_lock = threading.Lock()
_spare: tuple[object, Any, threading.Timer] | None = None


def take(kind: object) -> Any | None:
    """The spare actor of this process, if it is of this kind: its class and resources. It may have died."""
    global _spare
    with _lock:
        if _spare is None or _spare[0] != kind:
            return None
        (_, actor, timer), _spare = _spare, None
    timer.cancel()
    return actor


def keep(kind: object, actor: Any) -> None:
    """Keep an actor that has nothing to do, in the place of one that is kept."""
    global _spare
    timer = threading.Timer(IDLE_SECONDS, _end, [actor])
    timer.daemon = True
    with _lock:
        earlier, _spare = _spare, (kind, actor, timer)
    timer.start()
    if earlier is not None:
        earlier[2].cancel()
        ray.kill(earlier[1])


def _end(actor: Any) -> None:
    global _spare
    with _lock:
        if _spare is None or _spare[1] is not actor:
            return  # taken meanwhile
        _spare = None
    if ray.is_initialized():
        ray.kill(actor)
