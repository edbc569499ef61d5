"""How the pictures of reports look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#44337a")
"""Told apart by colour-blind readers too."""
INK, FAINT, GRID = "#1c1d20", "#63666e", "#e3e4e8"


@contextmanager
def quiet_axes() -> Iterator[None]:
    """Axes that leave the eye to the data; names that hold a dollar sign are no mathematics."""
    quiet: dict[Any, Any] = {
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": FAINT,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "font.size": 10.5,
    }
    with mpl.rc_context(quiet):
        yield
