"""A Hugging Face hub on this machine: the answers that ``datasets`` and readers of models ask for, from a directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse


@contextmanager
def fake_hub(directory: Path) -> Iterator[str]:
    """Serve ``directory/OWNER/NAME/REVISION``, each a commit of a data set or model; yields the address of the hub.

    The revision ``main`` is the last one by name.
    """
    handler = type("Handler", (_Handler,), {"directory": directory})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory: Path

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]:
            case ["api", "datasets" | "models", owner, name]:
                self._answer_commit(owner, name, "main")
            case ["api", "datasets" | "models", owner, name, "revision", revision]:
                self._answer_commit(owner, name, revision)
            case ["api", "datasets" | "models", owner, name, "tree", revision, *path]:
                deep = parse_qs(urlparse(self.path).query).get("recursive") == ["true"]
                self._answer_tree(self._commit(owner, name, revision), "/".join(path), deep)
            case ["api", "datasets" | "models", owner, name, "paths-info", revision]:
                paths = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
                commit = self._commit(owner, name, revision)
                self._answer_json(
                    [_entry(commit, commit / path) for path in paths if (commit / path).exists()]
                )
            case ["datasets", owner, name, "resolve", revision, *path] | [
                owner,
                name,
                "resolve",
                revision,
                *path,
            ]:
                self._answer_file(self._commit(owner, name, revision), "/".join(path))
            case _:
                self._answer(404)

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _commit(self, owner: str, name: str, revision: str) -> Path:
        """The directory of a commit, by its name or hash; one that does not exist for an unknown one."""
        commits = sorted(path for path in (self.directory / owner / name).glob("*") if path.is_dir())
        named = {key: path for path in commits for key in (path.name, _sha(path.name))}
        return commits[-1] if commits and revision == "main" else named.get(revision, Path("/nonexistent"))

    def _answer_commit(self, owner: str, name: str, revision: str) -> None:
        commit = self._commit(owner, name, revision)
        if not (self.directory / owner / name).is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif not commit.is_dir():
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [
                {"rfilename": str(path.relative_to(commit))} for path in commit.rglob("*") if path.is_file()
            ]
            facts = {
                "id": f"{owner}/{name}",
                "sha": _sha(commit.name),
                "private": False,
                "gated": False,
            }
            self._answer_json(facts | {"tags": [], "downloads": 0, "likes": 0, "siblings": files})

    def _answer_tree(self, commit: Path, path: str, deep: bool) -> None:
        if (commit / path).is_dir():
            found = (commit / path).rglob("*") if deep else (commit / path).iterdir()
            self._answer_json([_entry(commit, entry) for entry in sorted(found)])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _answer_file(self, commit: Path, path: str) -> None:
        facts = {"X-Repo-Commit": _sha(commit.name)}
        if (commit / path).is_file():
            content = (commit / path).read_bytes()
            facts["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            if span := self.headers.get("Range"):
                start, end = (int(part) for part in span.removeprefix("bytes=").split("-"))
                facts["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                self._answer(206, content[start : end + 1], facts)
            else:
                self._answer(200, content, facts)
        else:
            self._answer(404, b"", facts | {"X-Error-Code": "EntryNotFound"})

    def _answer_json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(commit: Path, path: Path) -> dict[str, object]:
    kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
    name = str(path.relative_to(commit))
    return {
        "type": kind,
        "path": name,
        "size": size,
        "oid": hashlib.sha1(str(path).encode()).hexdigest(),
    }
