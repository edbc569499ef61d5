"""Checkpoints of web servers: what is asked, and that no answer leads into the server's own network."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from checkpoint_files import save

from taumerge.errors import JobFailed
from workers.checkpoints.checkpoint import CheckpointError, companions, open_checkpoint, read_training
from workers.checkpoints.reading import open_reader, unchanged
from workers.checkpoints.remote import fetching, web
from workers.checkpoints.remote.path import RemotePath


@dataclass
class Site:
    """Files by path, and what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    etags: bool = True
    ranges: bool = True
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self.site.asked.append((self.command, self.path))
        if self.path in self.site.redirects:
            self._answer(302, b"", {"Location": self.site.redirects[self.path]})
            return
        content = self.site.files.get(self.path)
        if content is None:
            self._answer(404, b"", {})
            return
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        headers = {"ETag": tag} if self.site.etags else {}
        if self.headers.get("If-Match", tag) != tag:
            self._answer(412, b"", headers)
        elif (span := self.headers.get("Range")) and self.site.ranges:
            start, end = (int(part) for part in span.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._answer(206, content[start : end + 1], headers)
        else:
            self._answer(200, content, headers)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server on loopback, and no retries that wait long."""
    monkeypatch.setattr(fetching, "FIRST_PAUSE_SECONDS", 0.001)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def loopback_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemotePath, "http_to_loopback", True)


@pytest.fixture
def checkpoint(site: Site, tmp_path: Path) -> Path:
    """A checkpoint that the site serves below ``/m``."""
    directory = Path(save(tmp_path / "m", {"a": torch.randn(3000, 11)}, training={"steps": 3, "lr_sum": 0.1}))
    (directory / "config.json").write_text("{}")
    site.files = {f"/m/{path.name}": path.read_bytes() for path in directory.iterdir()}
    return directory


def refusal(uri: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(uri)
    return refused.value


@pytest.mark.usefixtures("loopback_allowed")
def test_a_directory_of_a_web_server(site: Site, checkpoint: Path) -> None:
    opened = open_checkpoint(f"http://{site.address}/m")
    assert opened.tensors == open_checkpoint(str(checkpoint)).tensors
    assert read_training(opened).steps == 3
    assert [path.name for path in companions(opened)] == ["config.json"]
    (file,) = opened.files
    buffer = bytearray(file.state.size)
    with open_reader(file) as reader:
        reader.read_into(memoryview(buffer), 0)
    assert bytes(buffer) == (checkpoint / "model.safetensors").read_bytes()
    assert unchanged(file)


@pytest.mark.usefixtures("loopback_allowed")
def test_whose_a_training_record_beside_a_file_is_shows_nowhere(site: Site, checkpoint: Path) -> None:
    assert read_training(open_checkpoint(str(checkpoint / "model.safetensors"))).steps == 3
    assert read_training(open_checkpoint(f"http://{site.address}/m/model.safetensors")).steps is None


@pytest.mark.usefixtures("loopback_allowed")
def test_every_companion_is_asked_for(site: Site, checkpoint: Path) -> None:
    names = {
        "config.json", "generation_config.json", "open_clip_config.json", "tokenizer.json",
        "tokenizer_config.json", "tokenizer.model", "spiece.model", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "chat_template.json",
        "chat_template.jinja", "processor_config.json", "preprocessor_config.json",
        "image_processor_config.json", "video_preprocessor_config.json",
    }  # fmt: skip
    for name in names:
        (checkpoint / name).write_text("{}")
        site.files[f"/m/{name}"] = b"{}"
    found = [path.name for path in companions(open_checkpoint(f"http://{site.address}/m"))]
    assert found == sorted(names)
    assert found == [path.name for path in companions(open_checkpoint(str(checkpoint)))]


@pytest.mark.usefixtures("loopback_allowed")
def test_a_file_that_was_replaced(site: Site, checkpoint: Path) -> None:
    (file,) = open_checkpoint(f"http://{site.address}/m").files
    content = bytearray(site.files["/m/model.safetensors"])
    content[-1] ^= 1
    site.files["/m/model.safetensors"] = bytes(content)
    assert not unchanged(file)
    with open_reader(file) as reader, pytest.raises(JobFailed) as failed:
        reader.read_into(memoryview(bytearray(8)), 0)
    assert failed.value.code == "input_changed"


@pytest.mark.usefixtures("loopback_allowed", "checkpoint")
def test_servers_without_etags_or_ranges_are_refused(site: Site) -> None:
    uri = f"http://{site.address}/m/model.safetensors"
    site.etags = False
    assert "ETag" in refusal(uri).message
    site.etags, site.ranges = True, False
    assert "range" in refusal(uri).message


@pytest.mark.usefixtures("loopback_allowed", "checkpoint")
@pytest.mark.parametrize(
    "target", ["http://{}/secret", "/m/model.safetensors", "//{}/secret", "file:///etc/passwd"]
)
def test_redirects_are_not_followed(site: Site, target: str) -> None:
    site.redirects["/moved.safetensors"] = target.format(site.address)
    assert refusal(f"http://{site.address}/moved.safetensors").code == "checkpoint_unreadable"
    assert site.asked == [("HEAD", "/moved.safetensors")]


PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.3.4",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%lo",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "fec0::1",
    "::127.0.0.1",
    "::ffff:0:7f00:1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(web.PrivateAddress):
        web._public_socket((family, socket.SOCK_STREAM, 0, "", (address, 443)))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_that_are_public(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    web._public_socket((family, socket.SOCK_STREAM, 0, "", (address, 443))).close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1"])
def test_no_spelling_of_loopback_is_connected_to(site: Site, host: str) -> None:
    port = site.address.partition(":")[2]
    refused = refusal(f"https://{host}:{port}/secret.safetensors")
    assert refused.code == "checkpoint_unreadable"
    assert site.asked == []


def test_a_name_that_comes_to_mean_another_address(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy looked it up and saw a public address; the connection's own look-up gets a private one."""
    port = int(site.address.partition(":")[2])
    asked = []

    def rebinding(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    refused = refusal(f"https://rebinding.example:{port}/secret.safetensors")
    assert "not public" in refused.message
    assert asked == ["rebinding.example"]
    assert site.asked == []
