"""How long the phases of a job take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note how long the body takes, if it ends well."""
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 4)
