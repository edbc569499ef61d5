"""Settings of the service, from the environment and from a file."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import ValidationError

import service.__main__ as main
from service import deployment
from service.__main__ import CannotStartError, _check_database, _read_settings
from service.settings import Settings
from workers.settings import WorkerSettings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "PORT",
        "TAUMERGE_PORT",
        "TAUMERGE_TOKEN",
        "TAUMERGE_HOST",
        "TAUMERGE_CONFIG",
        "TAUMERGE_STATE_DIR",
        "TAUMERGE_READ_ROOTS",
        "TAUMERGE_WRITE_ROOTS",
        "TAUMERGE_DATABASE_URL",
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


@pytest.mark.parametrize("key", ["token", "TAUMERGE_TOKEN", "Taumerge_Token"])
def test_a_file_may_name_settings_as_the_environment_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    (tmp_path / "taumerge.toml").write_text(f'{key} = "s3cret"\nPORT = 8003\nworkers = 3\n')
    monkeypatch.setenv("TAUMERGE_CONFIG", str(tmp_path / "taumerge.toml"))
    settings = Settings()
    assert settings.token is not None
    assert (settings.token.get_secret_value(), settings.port) == ("s3cret", 8003)
    assert WorkerSettings().workers == 3  # of a file that the service reads, too
    monkeypatch.setenv("TAUMERGE_TOKEN", "other")
    settings = Settings()
    assert settings.token is not None
    assert settings.token.get_secret_value() == "other"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('[taumerge]\ntoken = "s3cret"', "taumerge"),
        ('tokn = "s3cret"', "tokn"),
        ('TAUMERGE_TOKN = "s3cret"', "tokn"),
    ],
)
def test_what_a_file_sets_in_vain_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, name: str
) -> None:
    (tmp_path / "taumerge.toml").write_text(text)
    monkeypatch.setenv("TAUMERGE_CONFIG", str(tmp_path / "taumerge.toml"))
    with pytest.raises(CannotStartError, match=f"TAUMERGE_{name.upper()}: there is no such setting") as error:
        _read_settings()
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("empty", ["", " ", ","])
def test_empty_roots_allow_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty: str) -> None:
    (tmp_path / "taumerge.toml").write_text('write_roots = ["a"]\n')
    monkeypatch.setenv("TAUMERGE_CONFIG", str(tmp_path / "taumerge.toml"))
    monkeypatch.setenv("TAUMERGE_WRITE_ROOTS", empty)
    assert Settings().write_roots == ()
    assert Settings().read_roots == (str(tmp_path),)
    monkeypatch.setenv("TAUMERGE_READ_ROOTS", empty)
    assert Settings().read_roots == ()


def test_no_password_is_in_the_settings_text_or_in_what_is_wrong_with_them() -> None:
    settings = Settings(database_url="postgresql://u:hunter2@h/x", token="s3cret")
    assert "hunter2" not in f"{settings!r} {settings}"
    with pytest.raises(ValidationError) as error:
        Settings(host="0.0.0.0", database_url="postgresql://u:hunter2@h/x")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/u:hunter2@127.0.0.1:1/x",
        "postgresql://127.0.0.1:1/x?user=u&password=hunter2",
        "postgresql://u:/hunter2@127.0.0.1/x",
        "postgresql://u:hunter2/@127.0.0.1/x",
        "postgresql://u:hunter2@127.0.0.1:1/x",
        "hunter2",
    ],
)
def test_no_password_is_in_why_the_database_cannot_be_used(url: str) -> None:
    with pytest.raises(CannotStartError, match="TAUMERGE_DATABASE_URL") as error:
        _check_database(url)
    assert "hunter2" not in str(error.value)


def test_serve_builds_nothing_that_listens_without_a_token_by_an_oversight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "start_runner", lambda settings: None)
    with pytest.raises(ValueError, match="TAUMERGE_TOKEN"):
        deployment.application({})
    with pytest.raises(ValidationError, match="TAUMERGE_TOKEN"):
        deployment.application({"host": "0.0.0.0"})
    assert deployment.application({"host": "127.0.0.1"})
    monkeypatch.setenv("TAUMERGE_TOKEN", "s3cret")
    assert deployment.application({"host": "0.0.0.0"})


@pytest.mark.parametrize(
    ("host", "token", "refused"),
    [("0.0.0.0", None, True), ("0.0.0.0", "s3cret", False), ("127.0.0.1", None, False), (None, None, False)],
)
def test_a_serve_that_listens_beyond_loopback_already_needs_a_token_too(
    monkeypatch: pytest.MonkeyPatch, host: str | None, token: str | None, refused: bool
) -> None:
    monkeypatch.setattr(main, "listening_host", lambda: host)
    expected = pytest.raises(CannotStartError, match="set TAUMERGE_TOKEN") if refused else nullcontext()
    with expected:
        main._check_listening(Settings(token=token), ["other"])


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
