"""Settings of the service, from the environment and from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "PORT",
        "TAUMERGE_PORT",
        "TAUMERGE_TOKEN",
        "TAUMERGE_HOST",
        "TAUMERGE_CONFIG",
        "TAUMERGE_STATE_DIR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults(tmp_path: Path) -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 8000, None)
    assert settings.state_dir == tmp_path / ".taumerge"
    assert settings.database_url == f"sqlite:///{tmp_path}/.taumerge/jobs.sqlite3"
    assert settings.read_roots == settings.write_roots == (str(tmp_path),)


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PORT", "8001")
    monkeypatch.setenv("TAUMERGE_READ_ROOTS", f" {tmp_path}/a , file://{tmp_path}/b%20c,relative,")
    monkeypatch.setenv("TAUMERGE_TOKEN", "s3cret")
    monkeypatch.setenv("TAUMERGE_HOST", "0.0.0.0")
    monkeypatch.setenv("TAUMERGE_WORKER_MEMORY", "2GiB")
    settings = Settings()
    assert settings.port == 8001
    assert settings.read_roots == tuple(f"{tmp_path}/{name}" for name in ("a", "b c", "relative"))
    assert settings.worker_memory == 2 * 2**30
    assert "s3cret" not in repr(settings)
    monkeypatch.setenv("TAUMERGE_PORT", "8002")
    assert Settings().port == 8002


def test_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taumerge.toml").write_text('port = 8003\nread_roots = ["a", "b"]\nmax_running_jobs = 4\n')
    monkeypatch.setenv("TAUMERGE_CONFIG", str(tmp_path / "taumerge.toml"))
    settings = Settings()
    assert (settings.port, settings.max_running_jobs) == (8003, 4)
    assert settings.read_roots == (f"{tmp_path}/a", f"{tmp_path}/b")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert Settings(host=host).token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_listening_beyond_loopback_needs_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="TAUMERGE_TOKEN"):
        Settings(host=host)
    monkeypatch.setenv("TAUMERGE_TOKEN", "")  # an empty one is none
    with pytest.raises(ValidationError, match="TAUMERGE_TOKEN"):
        Settings(host=host)
    with pytest.raises(ValidationError):
        Settings(host=host, token="")
    assert Settings(host=host, token="s3cret").host == host


@pytest.mark.parametrize("root", ["s3://", "ftp://host/x", "simplecache::file:///etc", "file://host/x"])
def test_roots_that_cannot_be_served_are_refused(root: str) -> None:
    with pytest.raises(ValidationError, match="read_roots"):
        Settings(read_roots=root)
