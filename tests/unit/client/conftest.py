"""A real HTTP server that answers by script, and both clients behind one blocking face."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from taumerge import AsyncClient, Client, _transport, _waiting


@dataclass(frozen=True)
class Reply:
    """One answer; ``drop`` closes the connection instead, or after the (then incomplete) body."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class FakeService:
    """Answers each route with its scripted replies in turn; the last one repeats."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self._script: dict[str, deque[Reply]] = defaultdict(deque)
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                target = urlsplit(self.path)
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.requests.append(
                    Received(
                        self.command,
                        target.path,
                        dict(parse_qsl(target.query)),
                        {name.lower(): value for name, value in self.headers.items()},
                        json.loads(text) if text else None,
                    )
                )
                reply = fake._next(f"{self.command} {target.path}")
                if reply.body is not None or not reply.drop:
                    content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                    self.send_response(reply.status)
                    for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content) + (1000 if reply.drop else 0)))
                    self.end_headers()
                    self.wfile.write(content)
                self.close_connection = reply.drop

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> FakeService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self) -> None:
        self.requests.clear()
        self._script.clear()

    def script(self, route: str, *replies: Reply) -> None:
        self._script[route].extend(replies)

    def _next(self, route: str) -> Reply:
        replies = self._script[route]
        if not replies:
            return Reply(599, {"unscripted": route})
        return replies.popleft() if len(replies) > 1 else replies[0]


class Blocking:
    """An AsyncClient whose methods block, so that one test serves both clients."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **options)

    def __enter__(self) -> Blocking:
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._client.__aexit__(*error))
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            answer = getattr(self._client, name)(*args, **options)
            return self._iterate(answer) if isinstance(answer, AsyncIterator) else self._runner.run(answer)

        return call

    def _iterate(self, answer: AsyncIterator[Any]) -> Iterator[Any]:
        async def item() -> Any:
            return await anext(answer)

        while True:
            try:
                yield self._runner.run(item())
            except StopAsyncIteration:
                return


@pytest.fixture(scope="session")
def server() -> Iterator[FakeService]:
    with FakeService() as fake:
        yield fake


@pytest.fixture
def service(server: FakeService) -> FakeService:
    """The server, with nothing scripted or received yet."""
    server.reset()
    return server


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> type[Client]:
    """The class of a client; both take and answer the same."""
    return request.param


@pytest.fixture
def client(connect: type[Client], service: FakeService) -> Iterator[Client]:
    with connect(service.url) as client:
        yield client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing from outside, and short pauses."""
    for name in ("TAUMERGE_URL", "TAUMERGE_TOKEN", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    # Plain HTTP needs no certificates, and loading them would take most of the time of these tests.
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))
    monkeypatch.setattr(_transport, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(_waiting, "SHORTEST_PAUSE_SECONDS", 0.005)


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def make_job() -> Any:
    """A job as the service writes it."""

    def make(state: str = "queued", **fields: Any) -> dict[str, Any]:
        request = {
            "base": "/b",
            "models": [{"uri": "/m"}],
            "method": {"name": "median"},
            "output": "/models/out",
        }
        job = {
            "id": "merge-1",
            "kind": "merge",
            "state": state,
            "attempt": 1,
            "created_at": "2026-01-01T12:00:00Z",
            "started_at": None,
            "finished_at": None,
            "progress": None,
            "request": request,
            "result": None,
            "error": None,
        }
        if state == "succeeded":
            job["result"] = {
                "output": "/models/out",
                "files": [{"name": "model.safetensors", "bytes": 4096, "sha256": "ab" * 32}],
                "tensors": {"merged": 3, "copied": 1, "dropped": 0},
                "models": [{"uri": "/models/[a]", "norm": 2.0, "weight": 1.0, "coefficient": 0.3}],
                "merged_norm": 1.25,
                "scaling": 0.3,
                "seconds": {"aggregate": 0.5},
                "bytes_read": 8192,
                "bytes_written": 4096,
            }
        return job | fields

    return make
