"""The service on Ray: its HTTP replica on Ray Serve, and the runner beside it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from service import logs
from service.app import MAX_WAIT_SECONDS, create_app
from service.runner import find_runner, start_runner, stop_runner
from service.settings import Settings
from service.store import Store
from taumerge.schemas import JobKind, MergeRequest
from workers.merging import plan_merge, stop_shard_actors, worker_count
from workers.merging.plan import MergePlan

__all__ = ["SERVE_APP", "application", "deploy", "listening_host", "undeploy"]

SERVE_APP = "taumerge"
REQUEST_MARGIN_SECONDS = 15.0

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


def deploy(settings: Settings) -> None:
    """Put the HTTP replica on the Ray cluster that this process is connected to, replacing an earlier one.

    Raises:
        ray.serve.exceptions.RayServeException, RuntimeError: Serve could not start it.
    """
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": settings.host,
            "port": settings.port,
            # Serve cuts whatever takes longer: a preferred wait and a stream of events must end before.
            "request_timeout_s": max(MAX_WAIT_SECONDS, settings.events_seconds) + REQUEST_MARGIN_SECONDS,
        },
        logging_config=LOGGING,
    )
    serve.run(bind(settings), name=SERVE_APP, route_prefix="/")


def undeploy(runner: Any) -> None:
    """Stop the service whose runner this is, unless another service has taken its place since."""
    current = find_runner()
    if current is None or current._actor_id != runner._actor_id:
        return
    if serve.status().applications.keys() - {SERVE_APP}:
        serve.delete(SERVE_APP)
    else:
        serve.shutdown()  # type: ignore[no-untyped-call]
    stop_runner()
    stop_shard_actors()


def listening_host() -> str | None:
    """The address that Ray Serve listens at on the cluster that this process is connected to; None where at none."""
    client = _get_global_client(raise_if_no_controller_running=False)
    host: str | None = None if client is None else client.http_config.host
    return host


def application(args: dict[str, Any]) -> serve.Application:
    """What ``serve deploy`` builds from deploy/serve.yaml: settings of the environment, ``args`` over them.

    Serve listens where its own configuration says, and the default of ``host`` knows nothing of it.

    Raises:
        ValueError: there is no token, and nobody says that Serve listens on loopback.
    """
    settings = Settings.model_validate(args)
    if settings.token is None and "host" not in settings.model_fields_set:
        raise ValueError(
            "set TAUMERGE_TOKEN, or TAUMERGE_HOST=127.0.0.1 where Ray Serve listens on loopback only"
        )
    start_runner(settings)
    return bind(settings)


def bind(settings: Settings) -> serve.Application:
    """The HTTP replica as a Serve application."""

    def build() -> FastAPI:
        logs.configure("api")
        workers = worker_count(settings)
        worker_memory = int(settings.worker_memory)

        def plan(request: MergeRequest) -> MergePlan:
            return plan_merge(
                request, workers=workers, worker_memory=worker_memory, pickle_dir=settings.pickle_dir
            )

        return create_app(settings, Store.open(settings.database_url), plan=plan, wake=_Waker())

    replica = serve.deployment(
        name="api",
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=2,
        ray_actor_options={"num_cpus": 0},
        logging_config=LOGGING,
    )
    return replica(serve.ingress(build)()).bind()


class _Waker:
    """Tells the runner that a job was queued. Where there is none, the next one finds the job by itself."""

    def __init__(self) -> None:
        self._runner: Any = None

    def __call__(self, kind: JobKind) -> None:
        try:
            self._runner = self._runner or find_runner()
            if self._runner is not None:
                self._runner.wake.remote(kind)
        except RayError:
            self._runner = None
