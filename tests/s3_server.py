"""An S3 server on loopback: moto's, behind a proxy that can fail in the ways that stores and networks do."""

from __future__ import annotations

import http.client
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

import boto3
from moto.server import ThreadedMotoServer

FORWARDED = {"content-length", "etag", "content-range", "content-type", "last-modified", "x-amz-version-id"}


@dataclass(frozen=True)
class Request:
    """What the proxy was asked."""

    method: str
    path: str
    range: str | None


@dataclass(frozen=True)
class Fault:
    """How one answer goes wrong."""

    kind: Literal["status", "reset", "short"]
    number: int
    """The status; or after how many bytes the connection is reset, or the body ends as if that were all."""


@dataclass
class S3Server:
    """The proxy in front of moto."""

    endpoint: str
    faults: Callable[[Request], Fault | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    client: Any = None
    lock: Lock = field(default_factory=Lock)

    def put(self, directory: Path | str, bucket: str, prefix: str) -> str:
        """Upload the files of a directory; returns its URI."""
        for path in sorted(Path(directory).iterdir()):
            self.client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
        return f"s3://{bucket}/{prefix}"

    def names(self, bucket: str, prefix: str) -> list[str]:
        """The keys below ``prefix/``, without it."""
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
        return sorted(one["Key"].removeprefix(f"{prefix}/") for one in found)

    def content(self, bucket: str, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def reads(self, name: str) -> list[str | None]:
        """Ranges of the GETs of objects whose key ends with ``name``, in order."""
        return [one.range for one in self.requests if one.method == "GET" and one.path.endswith(name)]


def environment(port: int) -> dict[str, str]:
    """What a process needs to use the server at ``port``."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server(port: int) -> Iterator[S3Server]:
    """The server at ``port``, with the bucket ``models``. The environment must be that of ``environment(port)``."""
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    _, behind = moto.get_host_and_port()
    server = S3Server(os.environ["AWS_ENDPOINT_URL"])
    # straight to moto, so that what a test puts there is neither counted nor failed
    server.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{behind}")
    handler = type("Handler", (_Handler,), {"state": server, "behind": behind})
    proxy = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    server.client.create_bucket(Bucket="models")
    try:
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()
        server.client.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: S3Server
    behind: int

    def _forward(self) -> None:
        body = self._body()
        request = Request(self.command, self.path.partition("?")[0], self.headers.get("Range"))
        with self.state.lock:
            self.state.requests.append(request)
            fault = self.state.faults(request)
        if fault and fault.kind == "status":
            error = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
            self._answer(fault.number, {"Content-Type": "application/xml"}, error)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.behind)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "transfer-encoding")
        }
        if body is not None:
            headers["Content-Length"] = str(len(body))
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() in FORWARDED}
        upstream.close()
        if fault and fault.kind == "short":
            content = content[: fault.number]
            kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
        if fault and fault.kind == "reset":
            self._answer(answer.status, kept, content, cut=fault.number)
        else:
            self._answer(answer.status, kept, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = self.headers.get("Content-Length")
            return self.rfile.read(int(length)) if length else None
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.wfile.flush()
            # a zero linger time makes the close a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
