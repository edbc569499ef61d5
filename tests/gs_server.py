"""Google Cloud Storage on loopback: an emulator, behind a proxy for what it ignores, generations as conditions."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from gcp_storage_emulator.server import create_server

from service.local import free_port

HOP = {"connection", "date", "server", "transfer-encoding"}


@contextmanager
def gs_server(port: int, bucket: str) -> Iterator[None]:
    """The server at ``port``, with an empty ``bucket``."""
    behind = free_port()
    emulator = create_server("127.0.0.1", behind, in_memory=True, default_bucket=bucket)
    emulator.start()
    proxy = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"behind": behind}))
    thread = Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        emulator.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind: int

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        status = 0
        if "generation" in query and self._generation(path) != query["generation"][0]:
            status = 404
        elif query.get("ifGenerationMatch") == ["0"] and self._generation(_named(path, query, body)):
            status = 412
        if status:
            self._answer(status, {}, b"")
        else:
            self._answer(*self._ask(self.command, self.path, body, dict(self.headers)))

    do_GET = do_POST = do_PUT = do_DELETE = _forward  # noqa: N815

    def _generation(self, path: str) -> str | None:
        """That of the object whose metadata or content is at ``path``."""
        status, _, body = self._ask("GET", path.replace("/download/", "/"), b"", {})
        return str(json.loads(body)["generation"]) if status == 200 else None

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


def _named(path: str, query: dict[str, list[str]], body: bytes) -> str:
    """Where the metadata of the object is that an upload makes."""
    if "name" in query:
        name = query["name"][0]
    else:  # in the JSON that the body is, or that its first part is
        name = json.loads(body[body.index(b"{") : body.index(b"}") + 1].decode().replace("\n", ""))["name"]
    return f"{path.replace('/upload/', '/')}/{quote(name, safe='')}"
