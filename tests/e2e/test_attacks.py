"""What somebody may try who can post requests and lay files into the service's directories: docs/security.md."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

SLOW_CONNECTIONS = 100


@pytest.fixture
def http(service: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint outside of what requests may read."""
    return checkpoint(tmp_path_factory.mktemp("secret") / "model")


@pytest.fixture
def refuse(http: httpx.Client, service: Any, tmp_path: Path) -> Callable[..., list[str]]:
    """Posts a merge of two good models, changed; it must be refused. Returns the codes."""
    good = service.directory / "attacks" / tmp_path.name
    base, model = checkpoint(good / "base"), checkpoint(good / "model")

    def refuse(**changes: Any) -> list[str]:
        body = {"base": str(base), "models": [str(model)], "method": "median", "output": str(good / "out")}
        answer = http.post("/merge", json=body | changes)
        assert answer.status_code == 422, answer.text
        assert not (good / "out").exists()
        return [error["code"] for error in answer.json()["errors"]]

    return refuse


@pytest.fixture
def trap(service: Any, tmp_path: Path) -> Path:
    """A directory that requests may read, for a checkpoint that is none."""
    directory: Path = service.directory / "traps" / tmp_path.name
    directory.mkdir(parents=True)
    return directory


def checkpoint(directory: Path) -> Path:
    directory.mkdir(parents=True)
    save_file({"weight": np.ones((8, 8), np.float32)}, directory / "model.safetensors")
    return directory


def test_paths_that_leave_the_roots(
    refuse: Callable[..., list[str]], service: Any, secret: Path, trap: Path
) -> None:
    climbing = f"{service.directory}/../" + "../" * len(service.directory.parts) + str(secret).lstrip("/")
    assert refuse(base=climbing) == ["not_allowed"]
    assert refuse(base=f"file://{service.directory}/%2e%2e/{secret.parent.name}/model") == ["not_allowed"]
    assert refuse(output=f"{service.directory}/../escaped") == ["not_allowed"]
    (trap / "link").symlink_to(secret)
    assert refuse(models=[str(trap / "link")]) == ["not_allowed"]
    (trap / "out").symlink_to(secret.parent)
    assert refuse(output=str(trap / "out" / "merged")) == ["not_allowed"]


def test_a_link_that_is_swapped_in_after_the_check(
    http: httpx.Client, service: Any, secret: Path, trap: Path
) -> None:
    """Two long merges hold both processes while the links of those that wait are set."""
    large = sparse_checkpoint(trap / "large", 256 * 2**20)
    body = {"base": str(large), "models": [str(large)] * 4, "method": "median"}
    holders = [http.post("/merge", json=body | {"output": str(trap / f"held-{i}")}).json() for i in range(2)]
    inside = checkpoint(trap / "inside")
    body = {"base": str(inside), "models": [str(inside)], "method": "median", "output": str(trap / "out")}
    waiting = http.post("/merge", json=body).json()
    inside.rename(trap / "moved")
    inside.symlink_to(secret)
    for holder in holders:
        http.post(f"/jobs/{holder['id']}/cancel")
    while (job := http.get(f"/jobs/{waiting['id']}").json())["state"] in {"queued", "running"}:
        time.sleep(0.05)
    assert (job["state"], job["error"]["code"]) == ("failed", "invalid_request")
    assert {error["code"] for error in job["error"]["details"]["errors"]} == {"not_allowed"}
    assert not (trap / "out").exists()


@pytest.mark.parametrize("length", [2**63, 2**40, 200 * 10**6])
def test_a_header_bomb(refuse: Callable[..., list[str]], trap: Path, length: int) -> None:
    with (trap / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{" * 100)
        file.truncate(300 * 10**6)
    began = time.monotonic()
    assert refuse(base=str(trap)) == ["malformed_header"]
    assert time.monotonic() - began < 5


def test_a_sparse_file_that_no_disk_can_hold(refuse: Callable[..., list[str]], trap: Path) -> None:
    bomb = str(sparse_checkpoint(trap / "bomb", 2**42))
    assert refuse(base=bomb, models=[bomb]) == ["insufficient_space"]


def test_an_index_that_names_files_elsewhere(
    refuse: Callable[..., list[str]], secret: Path, trap: Path
) -> None:
    for name in (f"{secret}/model.safetensors", "../base/model.safetensors"):
        index = {"metadata": {}, "weight_map": {"weight": name}}
        (trap / "model.safetensors.index.json").write_text(json.dumps(index))
        assert refuse(base=str(trap)) == ["malformed_index"]


def test_more_than_a_request_may_hold(http: httpx.Client, refuse: Callable[..., list[str]]) -> None:
    assert refuse(models=["/m"] * 257) == ["too_long"]
    for headers in ({"content-type": "application/json"}, {"transfer-encoding": "chunked"}):
        answer = http.post("/merge", content=iter([b"[" * 10_000] * 110), headers=headers)
        assert answer.status_code == 413
    nested = http.post("/merge", content=b"[" * 500_000, headers={"content-type": "application/json"})
    assert nested.status_code == 422


def test_clients_that_never_finish_their_requests(http: httpx.Client, service: Any) -> None:
    url = httpx.URL(service.url)
    with ExitStack() as connections:
        for _ in range(SLOW_CONNECTIONS):
            slow = connections.enter_context(socket.create_connection((url.host, url.port), timeout=5))
            slow.sendall(
                b"POST /merge HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
            )
        for _ in range(5):
            began = time.monotonic()
            assert http.get("/healthz").status_code == 200
            assert http.get("/jobs").status_code == 200
            assert time.monotonic() - began < 2


def test_the_cluster_asks_for_its_token_and_its_dashboard_listens_on_loopback(service: Any) -> None:
    dashboards = [
        connection
        for process in psutil.Process().children(recursive=True)
        if "dashboard/dashboard.py" in command_line(process)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and 8265 <= connection.laddr.port < 8365
    ]
    assert dashboards
    for dashboard in dashboards:
        assert dashboard.laddr.ip == "127.0.0.1"
        answer = httpx.get(f"http://127.0.0.1:{dashboard.laddr.port}/api/jobs/")
        assert answer.status_code in {401, 403}
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def command_line(process: psutil.Process) -> str:
    """Its words; none of one that has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # zombies too
        return ""


def sparse_checkpoint(directory: Path, size: int) -> Path:
    """One float32 tensor of ``size`` bytes that takes no disk: a hole."""
    header = json.dumps(
        {"weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    ).encode()
    directory.mkdir(parents=True)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return directory
