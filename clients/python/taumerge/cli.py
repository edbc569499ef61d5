"""The ``taumerge`` command.

Exit status: 0 done, 1 the job failed or was cancelled, 2 bad usage or a rejected request, 3 the
service cannot be reached. With ``--json`` stdout holds JSON and nothing else; messages go to stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic_core import to_json
from rich.console import Console

from taumerge import _display
from taumerge._progress import ProgressBar
from taumerge._transport import DEFAULT_URL
from taumerge._waiting import succeeded
from taumerge.client import Client
from taumerge.errors import (
    ApiError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    ServiceUnreachable,
    TaumergeError,
)
from taumerge.recipe import load_recipe
from taumerge.schemas import Job, JobKind, JobState

__all__ = ["app", "main"]

DONE, FAILED, REJECTED, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

T = TypeVar("T")
Url = Annotated[
    str | None,
    typer.Option("--url", help=f"Address of the service.  [default: $TAUMERGE_URL, else {DEFAULT_URL}]"),
]
Token = Annotated[str | None, typer.Option("--token", help="Bearer token.  [default: $TAUMERGE_TOKEN]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Identifier of the job.")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The request, as a YAML or JSON file.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Merge fine-tuned checkpoints on a taumerge service.",
)


@dataclass(frozen=True)
class Session:
    """The options that every command has."""

    url: str | None = None
    token: str | None = None
    as_json: bool = False

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client; its errors end the command with their exit status."""
        try:
            with Client(self.url, self.token) as client:
                yield client
        except TaumergeError as error:
            for line in error.errors if isinstance(error, InvalidRequest) else [error]:
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(_exit_status(error)) from None

    def show(self, value: T, display: Callable[[Console, T], None]) -> None:
        """Print a result on stdout."""
        if self.as_json:
            typer.echo(to_json(value, indent=2, inf_nan_mode="null").decode())
        else:
            display(_display.new_console(), value)


def _exit_status(error: TaumergeError) -> int:
    match error:
        case JobFailed() | JobCancelled():
            return FAILED
        case ServiceUnreachable():
            return UNREACHABLE
        case ApiError():  # the service refused the request, or has no useful answer to any
            return REJECTED if 400 <= error.status < 500 and error.status != 429 else UNREACHABLE
        case _:
            return REJECTED


@contextmanager
def _resumable(job_id: str) -> Iterator[None]:
    """Ctrl-C ends the watching of a job, not the job."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped watching; the job goes on: taumerge follow {job_id}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.callback()
def options(ctx: typer.Context, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    ctx.obj = Session(url, token, as_json)


def _session(ctx: typer.Context, url: str | None, token: str | None, as_json: bool) -> Session:
    """The options after the command, and where they are absent those before it."""
    before: Session = ctx.obj
    return Session(url or before.url, token or before.token, as_json or before.as_json)


@app.command()
def merge(
    ctx: typer.Context,
    recipe: Recipe,
    wait: Wait = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and plan only; queue nothing, whatever --wait says.")
    ] = False,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Queue a merge."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        request = load_recipe(recipe)
        if dry_run:
            session.show(client.plan(request), _display.show_plan)
            return
        _show_queued(session, client, client.merge(request), wait)


@app.command()
def search(
    ctx: typer.Context,
    recipe: Recipe,
    wait: Wait = False,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Queue a search for the best rule, its parameters and λ."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        _show_queued(session, client, client.search(load_recipe(recipe)), wait)


@app.command()
def finetune(
    ctx: typer.Context,
    recipe: Recipe,
    wait: Wait = False,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Queue a fine-tune, or a grid of them."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        _show_queued(session, client, client.finetune(load_recipe(recipe)), wait)


@app.command()
def diagnose(
    ctx: typer.Context,
    recipe: Recipe,
    wait: Wait = False,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Queue a diagnosis of heterogeneity."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        _show_queued(session, client, client.diagnose(load_recipe(recipe)), wait)


def _show_queued(session: Session, client: Client, job: Job, wait: bool) -> None:
    """Show a job that was queued; with ``wait`` once it has ended, and end the command if it failed."""
    if wait:
        typer.echo(f"queued {job.id}", err=True)
        with _resumable(job.id):
            job = client.wait(job.id, progress=True, check=False)
    session.show(job, _display.show_job)
    if wait:
        succeeded(job)


@app.command()
def jobs(
    ctx: typer.Context,
    kind: Annotated[JobKind | None, typer.Option("--kind", help="Only jobs of this kind.")] = None,
    state: Annotated[JobState | None, typer.Option("--state", help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 20,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        session.show(list(client.jobs(kind=kind, state=state, limit=limit)), _display.show_jobs)


@app.command()
def show(
    ctx: typer.Context, job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False
) -> None:
    """Show a job and its result."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        session.show(client.job(job_id), _display.show_job)


@app.command()
def follow(
    ctx: typer.Context, job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False
) -> None:
    """Watch a job until it has ended.

    With --json each event is one line.
    """
    session = _session(ctx, url, token, as_json)
    with session.client() as client, _resumable(job_id):
        if session.as_json:
            for event in client.follow(job_id):
                typer.echo(event.model_dump_json())
        else:
            with ProgressBar() as bar:
                for event in client.follow(job_id):
                    bar.draw(event)
        job = client.job(job_id)
        if not session.as_json:
            session.show(job, _display.show_job)
        succeeded(job)


@app.command()
def cancel(
    ctx: typer.Context, job_id: JobId, url: Url = None, token: Token = None, as_json: AsJson = False
) -> None:
    """Ask for the cancellation of a job."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        session.show(client.cancel(job_id), _display.show_job)


@app.command()
def methods(ctx: typer.Context, url: Url = None, token: Token = None, as_json: AsJson = False) -> None:
    """List the rules of merging."""
    session = _session(ctx, url, token, as_json)
    with session.client() as client:
        session.show(client.methods(), _display.show_methods)


def main() -> None:
    """Entry point of the ``taumerge`` command."""
    app()


if __name__ == "__main__":
    main()
