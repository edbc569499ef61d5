"""Actors whose job has ended, kept for a moment for the next one.

An actor needs seconds to import torch and the model's library, more than a small training or a search of small models
takes. Those that have nothing to do for ``IDLE_SECONDS`` end, so that their CPU or GPU is free for others.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray

IDLE_SECONDS = 5.0

_lock = threading.Lock()
_spare: tuple[object, Sequence[Any], threading.Timer] | None = None


def take(kind: object) -> Sequence[Any]:
    """The spare actors of this process, if they are of this kind: class, resources, number. They may have died."""
    global _spare
    with _lock:
        if _spare is None or _spare[0] != kind:
            return ()
        (_, actors, timer), _spare = _spare, None
    timer.cancel()
    return actors


def keep(kind: object, actors: Sequence[Any]) -> None:
    """Keep actors that have nothing to do, in the place of those that are kept."""
    global _spare
    timer = threading.Timer(IDLE_SECONDS, _end, [actors])
    timer.daemon = True
    with _lock:
        earlier, _spare = _spare, (kind, actors, timer)
    timer.start()
    if earlier is not None:
        earlier[2].cancel()
        end(earlier[1])


def end(actors: Sequence[Any]) -> None:
    """Kill actors, whatever they are doing."""
    for actor in actors:
        ray.kill(actor)


def _end(actors: Sequence[Any]) -> None:
    global _spare
    with _lock:
        if _spare is None or _spare[1] is not actors:
            return  # taken meanwhile
        _spare = None
    if ray.is_initialized():
        end(actors)
