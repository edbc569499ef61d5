"""``python -m service``: the service in the foreground, on the Ray cluster it finds or on one of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from service import logs
from service.deployment import SERVE_APP, deploy, listening_host, undeploy
from service.migrations import SchemaTooNew
from service.runner import start_runner
from service.settings import Settings, is_loopback
from service.store import Store

READY_SECONDS = 180.0
STOP_SECONDS = 40.0
SERVE_OPTIONS = {
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Of a cluster that is started here: the proxy asks the replica by gRPC, which wants Ray's token too, and each has one
event loop. Of 1,000 POSTs over 64 connections the slowest hundredth took a quarter to a half less."""


class CannotStartError(Exception):
    """One line that says why, for whoever starts the service."""


def main() -> int:
    """Start the service, say where it is, and stay until Ctrl-C or SIGTERM. Returns the exit status."""
    _interrupt_on_sigterm()
    logs.configure("service")
    sys.stderr = logs.Unprefixed(sys.stderr)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stdout = sys.stdout
    try:
        # Whoever starts the service waits for one line on stdout; what Ray and the workers print is on stderr.
        with contextlib.redirect_stdout(sys.stderr):
            settings = _read_settings()
            _check_database(settings.database_url)
            with _ray_cluster(), _deployed(settings):
                print(
                    f"taumerge is ready at {_address(settings.host, settings.port)}", file=stdout, flush=True
                )
                while True:
                    signal.pause()
    except CannotStartError as error:
        print(f"taumerge cannot start: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _interrupt_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _read_settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        raise CannotStartError(
            "; ".join(_describe(item["loc"], item["msg"]) for item in error.errors())
        ) from None
    except ValueError as error:  # a TOML file that is none
        raise CannotStartError(f"TAUMERGE_CONFIG: {error}") from None


def _describe(loc: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ").replace(
        "Extra inputs are not permitted", "there is no such setting"
    )
    if not loc:
        return message
    name = str(loc[0]).upper()
    return f"{name if name.startswith('TAUMERGE_') else f'TAUMERGE_{name}'}: {message}"


def _check_database(url: str) -> None:
    try:
        # What is no URL may have a password anywhere, and so may the parser's complaint; a query may have one too.
        shown = make_url(url).set(query={}).render_as_string(hide_password=True)
    except (SQLAlchemyError, ValueError):
        raise CannotStartError(
            "TAUMERGE_DATABASE_URL is no URL: write postgresql://USER:PASSWORD@HOST/DATABASE, special characters "
            "percent-encoded, or sqlite:////PATH"
        ) from None
    try:
        Store.open(url).close()
    except (SQLAlchemyError, SchemaTooNew, OSError, ImportError) as error:
        reason = _first_line(getattr(error, "orig", None) or error)
        raise CannotStartError(
            f"the database {shown} (TAUMERGE_DATABASE_URL) cannot be used: {reason}"
        ) from None


@contextlib.contextmanager
def _ray_cluster() -> Iterator[None]:
    """Connected to the cluster of ``RAY_ADDRESS`` or ``ray start``, or else to one that ends with this process.

    Ray asks for a token on a cluster that it starts here (unless RAY_AUTH_MODE says otherwise), and its dashboard
    and client listen on loopback.
    """
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token.parent.exists():
        token.parent.mkdir(mode=0o700, parents=True)
    os.environ.update(SERVE_OPTIONS | os.environ)
    try:
        ray.init(logging_level=logging.ERROR)
    except Exception as error:  # noqa: BLE001  # what Ray raises where its processes are slow to start
        raise CannotStartError(
            f"Ray cannot be reached or started: {_first_line(error)}; check RAY_ADDRESS, and set RAY_AUTH_MODE=token "
            "where that cluster asks for a token"
        ) from None
    _interrupt_on_sigterm()  # Ray has set a handler of its own
    if token.exists() and token.stat().st_uid == os.geteuid():
        token.chmod(0o600)  # Ray makes it readable for everybody
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _deployed(settings: Settings) -> Iterator[None]:
    """The service on this cluster, in the place of one that is there, until the end of the block."""
    others = sorted(serve.status().applications.keys() - {SERVE_APP})
    if others:
        _check_listening(settings, others)
    else:
        serve.shutdown()  # type: ignore[no-untyped-call]  # an earlier service may listen elsewhere
        _check_port(settings.host, settings.port)
    runner = start_runner(settings)
    try:
        try:
            deploy(settings)
        except (RayServeException, RuntimeError, ValueError) as error:
            raise CannotStartError(f"Ray Serve could not start it: {_first_line(error)}") from None
        _wait_until_ready(settings, others)
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave half of it behind
            signal.signal(number, signal.SIG_IGN)
        _limit_stopping()
        undeploy(runner)


def _limit_stopping() -> None:
    """Whoever stops a whole process group has stopped Ray as well, and Ray's calls then wait for it in vain."""

    def give_up() -> None:
        print(f"taumerge did not stop within {STOP_SECONDS:.0f} s and is ended", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(STOP_SECONDS, give_up)
    timer.daemon = True
    timer.start()


def _check_listening(settings: Settings, others: Sequence[str]) -> None:
    """Serve goes on to listen where it does for the other applications, whatever the settings say."""
    host = listening_host()
    if settings.token is None and host is not None and not is_loopback(host):
        raise CannotStartError(
            f"Ray Serve listens on {host} on this cluster, for {', '.join(others)}: set TAUMERGE_TOKEN"
        )


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise CannotStartError(
                f"{host}:{port} cannot be used: {error.strerror}; set PORT to another one"
            ) from None


def _wait_until_ready(settings: Settings, others: Sequence[str]) -> None:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    address = _address(host, settings.port)
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError as error:  # HTTPError too: 503 until the runner has started its processes
            reason = str(error)
        time.sleep(0.05)
    if others:
        reason += f"; Ray Serve runs {', '.join(others)} on this cluster and may listen elsewhere"
    raise CannotStartError(f"{address} is not ready after {READY_SECONDS:.0f} s: {reason}")


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
