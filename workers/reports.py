"""Reports as one HTML file each, to be read offline and handed on: nothing in it is fetched from anywhere.

``page`` lays out sections made of the parts below. A content security policy in the page itself forbids every request,
and every script and style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = files("workers") / "templates"

Cell: TypeAlias = str | float | None


@dataclass(frozen=True)
class Numbers:
    """The few numbers that matter: (label, value, note)."""

    items: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "numbers"


@dataclass(frozen=True)
class Facts:
    """Pairs of a name and a value."""

    items: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Notices:
    """What the reader must not miss: warnings, verdicts."""

    items: Sequence[str]
    kind: ClassVar[str] = "notices"


@dataclass(frozen=True)
class Column:
    """A column of a table; one of numbers has a format, as ``.4f``."""

    name: str
    format: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it is aligned to the right."""
        return bool(self.format)

    def show(self, cell: Cell) -> str:
        """A cell as the page has it; an en dash where there is none."""
        if cell is None:
            return "–"
        return cell if isinstance(cell, str) else format(cell, self.format)


@dataclass(frozen=True)
class Table:
    """Rows of cells; a click on a heading sorts them where the table is ``sortable``."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str
    """What the table holds, for those who cannot see it too."""
    sortable: bool = False
    marked: frozenset[int] = frozenset()
    """Rows that stand out."""
    quiet: frozenset[int] = frozenset()
    """Rows for comparison."""
    kind: ClassVar[str] = "table"

    def paired(self, row: Sequence[Cell]) -> Iterator[tuple[Column, Cell]]:
        """The cells of a row with their columns."""
        return zip(self.columns, row, strict=True)


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    png: bytes
    alt: str
    """What it shows, in words."""
    caption: str
    kind: ClassVar[str] = "picture"

    @property
    def uri(self) -> str:
        """The image itself as a ``data:`` URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Code:
    """Text to copy, as it is."""

    text: str
    kind: ClassVar[str] = "code"


Part: TypeAlias = Numbers | Facts | Notices | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """Parts under a heading; ``folded`` shows only the heading until it is clicked."""

    title: str
    parts: Sequence[Part]
    folded: bool = False


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """A complete HTML document: title, a sentence below it, and the sections. All text is escaped."""
    environment = Environment(
        loader=PackageLoader("workers"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / name).read_text() for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("report.html").render(
        title=title, lead=lead, sections=sections, policy=policy, style=style, script=script
    )


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144)
    return file.getvalue()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
