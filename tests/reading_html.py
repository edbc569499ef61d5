"""Reads a report's page as a browser would, as far as tests ask: text, tables, images, and whatever it would fetch."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

FETCHING = {
    "src",
    "href",
    "srcset",
    "data",
    "poster",
    "action",
    "formaction",
    "background",
    "ping",
    "manifest",
}
"""Attributes that make a browser fetch something, or send it."""
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A parsed page."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        """Everything that is shown."""
        self.tables: list[list[list[str]]] = []
        """Rows of cells of each table, the heading first."""
        self.marked: list[list[str]] = []
        """The rows that stand out."""
        self.images: list[bytes] = []
        self.alternatives: list[str] = []
        self.policy = ""
        self._fetched: list[str] = []
        self._inline: list[tuple[str, str]] = []
        self._handlers: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._fetched += [f"{tag} {name}={value}" for name, value in given.items() if name in FETCHING]
        self._handlers += [name for name in given if name.startswith("on") or name == "style"]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        elif tag == "img":
            self.images.append(
                base64.b64decode(given["src"].removeprefix("data:image/png;base64,"), validate=True)
            )
            self.alternatives.append(given["alt"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            if given.get("class") == "marked":
                self.marked.append(self.tables[-1][-1])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in ("script", "style"):
            self._inline.append((inside, data))
            return
        self.text += data
        if inside in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def check_self_contained(self) -> None:
        """Nothing is fetched, and the policy allows the inline script and style that are there, and nothing else."""
        assert [one for one in self._fetched if not one.startswith("img src=data:image/png;base64,")] == []
        assert self._handlers == []
        rules = dict(rule.strip().partition(" ")[::2] for rule in self.policy.split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["img-src"] == "data:"
        for kind, content in self._inline:
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
            assert "url(" not in content
            assert "@import" not in content
        assert sorted(kind for kind, _ in self._inline) == ["script", "style"]


def read_page(html: str) -> Page:
    """``html``, parsed; every element that is opened must be closed."""
    page = Page()
    page.feed(html)
    page.close()
    assert page._open == [], "left open"
    return page
