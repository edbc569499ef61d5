"""The report of a search in a real browser: no request leaves the page, no policy is violated, tables sort."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.reports import Column, Picture, Section, Table, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f0005000101a5f645400000000049454e44ae426082"
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


class Tab:
    """A tab of a headless Chromium, driven by its DevTools protocol over pipes."""

    def __init__(self, profile: Path) -> None:
        reading, theirs = os.pipe()
        ours, writing = os.pipe()
        assert CHROMIUM is not None
        flags = (
            "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
            f"--remote-debugging-pipe --user-data-dir={profile}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{ours} 4>&{theirs}', CHROMIUM, *flags.split(), "about:blank"],
            pass_fds=(ours, theirs),
            stderr=subprocess.DEVNULL,
        )
        os.close(ours)
        os.close(theirs)
        self._in, self._out = os.fdopen(writing, "wb"), os.fdopen(reading, "rb")
        self._buffer = b""
        self._calls = 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer of the browser; what it tells meanwhile is kept in ``events``."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters, **self._session}
        self._in.write(json.dumps(message).encode() + b"\0")
        self._in.flush()
        while (answer := self._read()).get("id") != self._calls:
            self.events.append(answer)
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Load a file and wait until everything in it has loaded."""
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self) -> None:
        self.call("Browser.close")
        self._in.close()
        self._out.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._out.fileno(), 1 << 16)
            assert read, "Chromium has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    tab = Tab(tmp_path / "profile")
    yield tab
    tab.close()


def test_a_report_fetches_nothing_and_its_tables_sort(tab: Tab, tmp_path: Path) -> None:
    columns = [Column("rule"), Column("score", ".2f")]
    rows = [["median", 0.5], ["cclip", 0.25], ["<b>fednova</b>", None]]
    table = Table(columns, rows, "Scores.", sortable=True)
    report = tmp_path / "report.html"
    report.write_text(
        page("A report", "of nothing", [Section("All", [table, Picture(PIXEL, "a dot", "A dot.")])])
    )
    tab.open(report)

    first = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
    assert tab.evaluate(first) == ["median", "cclip", "<b>fednova</b>"]
    for column, order in [
        (1, ["median", "cclip", "<b>fednova</b>"]),
        (1, ["cclip", "median", "<b>fednova</b>"]),
        (0, ["<b>fednova</b>", "cclip", "median"]),
    ]:
        tab.evaluate(f"document.querySelectorAll('th')[{column}].click()")
        assert tab.evaluate(first) == order
    assert tab.evaluate("document.querySelector('img').naturalWidth") == 1
    assert tab.evaluate("getComputedStyle(document.body).margin") == "0px", "the style is applied"

    requested = [
        event["params"]["request"]["url"]
        for event in tab.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requested if not url.startswith("data:")] == [report.as_uri()]
    assert [event for event in tab.events if event["method"] == "Log.entryAdded"] == []


def test_the_policy_stops_what_would_leave_the_page(tab: Tab, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    whole = page("A report", "of nothing", [])
    intruder = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "run"</script></body>'
    report.write_text(whole.replace("</body>", intruder))
    tab.open(report)
    assert tab.evaluate("document.title") == "A report"
    refused = [
        event["params"]["entry"]["text"] for event in tab.events if event["method"] == "Log.entryAdded"
    ]
    assert sum("Content Security Policy" in text for text in refused) == 2, refused
