"""What a request may read and write: files and objects inside the configured roots, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from service.settings import Settings
from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import DiagnoseRequest, EvaluationSpec, FinetuneRequest, MergeRequest, SearchRequest
from workers.checkpoints.checkpoint import CheckpointError
from workers.checkpoints.files import Location, locate
from workers.checkpoints.names import RECORD
from workers.checkpoints.remote.path import RemotePath, is_remote, parse_root
from workers.evaluation.preflight import places
from workers.finetuning.datasets.hub_address import hub_address, is_hub
from workers.finetuning.preflight import OPEN_CLIP, dataset_places

__all__ = ["check_diagnose", "check_finetune", "check_merge", "check_search"]

Places = list[tuple[tuple[str | int, ...], str]]


def check_merge(request: MergeRequest, settings: Settings) -> None:
    """Refuse a merge that reads outside ``read_roots`` or writes outside ``write_roots``.

    Raises:
        InvalidRequest: code ``not_allowed`` (or that of an unusable URI) at ``base``, ``models.i.uri``
            or ``output``; every refusal at once. Messages name no path that the request did not name.
    """
    _check(_checkpoints(request), [], request.output, settings)


def check_search(request: SearchRequest, settings: Settings) -> None:
    """Refuse a search as ``check_merge`` does; what its evaluation reads must be inside ``read_roots`` too."""
    _check(_checkpoints(request), _evaluation(request.evaluation), request.output, settings)


def check_diagnose(request: DiagnoseRequest, settings: Settings) -> None:
    """Refuse a diagnosis as ``check_search`` does."""
    _check(_checkpoints(request), _evaluation(request.evaluation), request.output, settings)


def check_finetune(request: FinetuneRequest, settings: Settings) -> None:
    """Refuse a fine-tune as ``check_merge`` does; its places are the base, the data set and the output.

    A base by name (``open_clip://…``) is no place: it is fetched from where it is published.
    """
    base: Places = [] if request.base.startswith(OPEN_CLIP) else [(("base",), request.base)]
    data: Places = [(("task", "dataset", field), uri) for field, uri in dataset_places(request.task.dataset)]
    _check(base, data, request.output, settings)


def _checkpoints(request: MergeRequest | SearchRequest | DiagnoseRequest) -> Places:
    uris = [one.uri for one in request.models]  # models of a merge, or tasks' models of a search
    return [(("base",), request.base), *((("models", index, "uri"), uri) for index, uri in enumerate(uris))]


def _evaluation(spec: EvaluationSpec | None) -> Places:
    return [] if spec is None else places(spec)


def _check(checkpoints: Places, data: Places, output: str | None, settings: Settings) -> None:
    errors = [
        _refusal(loc, uri, settings, "read", located)
        for read, located in ((checkpoints, locate), (data, _locate_data))
        for loc, uri in read
    ]
    if output is not None:
        errors.append(_refusal(("output",), output, settings, "write"))
    if refused := [error for error in errors if error is not None]:
        raise InvalidRequest(refused)


def _refusal(
    loc: tuple[str | int, ...],
    uri: str,
    settings: Settings,
    verb: str,
    located: Callable[[str], Location] = locate,
) -> ErrorItem | None:
    roots = settings.read_roots if verb == "read" else settings.write_roots
    try:
        place = located(uri)
        if isinstance(place, RemotePath):
            problem = None if _is_inside_remote(place, roots, verb) else _outside(verb)
        else:
            problem = _local_problem(
                place, [Path(root) for root in roots if not is_remote(root)], settings, verb
            )
    except CheckpointError as error:
        return ErrorItem(loc=loc, code=error.code, msg=str(error))
    except (OSError, RuntimeError):  # a loop of symbolic links, or a name that no disk takes
        problem = "cannot be resolved to a path"
    if problem is None:
        return None
    return ErrorItem(loc=loc, code="not_allowed", msg=f"{uri} {problem}")


def _outside(verb: str) -> str:
    return (
        f"is not inside a directory that this service may {verb}, or a link in it leads out of there; "
        f"choose another path, or ask its operator to extend TAUMERGE_{verb.upper()}_ROOTS"
    )


def _locate_data(uri: str) -> Location:
    """As ``locate``; a data set of the hub lies at ``hf://datasets/OWNER/NAME``."""
    if not is_hub(uri):
        return locate(uri)
    try:
        return RemotePath("hf", f"datasets/{hub_address(uri).repository}", key="")
    except ValueError as error:
        raise CheckpointError("unsupported_uri", str(error)) from None


def _is_inside_remote(place: RemotePath, roots: Sequence[str], verb: str) -> bool:
    prefixes = [parse_root(root) for root in roots if is_remote(root)]
    return any(
        place.segments[: len(prefix)] == prefix and (verb == "read" or place.segments != prefix)
        for prefix in prefixes
    )


def _local_problem(place: Path, roots: Sequence[Path], settings: Settings, verb: str) -> str | None:
    """What forbids ``place``, or what links directly in it lead to.

    Raises ``OSError`` or ``RuntimeError`` where links lead nowhere.
    """
    # The real path, with links and ".." resolved: what will be opened, not what was written.
    for path in _read_with(place) if verb == "read" else [place.resolve()]:
        # An output that is itself a root would put the merge's work directory beside it, outside the root.
        allowing = [root for root in roots if path.is_relative_to(root) and (verb == "read" or path != root)]
        if not allowing:
            return _outside(verb)
        state = settings.state_dir
        touches_state = path.is_relative_to(state) or (verb == "write" and state.is_relative_to(path))
        # A root below the state directory was set for requests; one around it was not set for the state.
        if touches_state and not any(root != state and root.is_relative_to(state) for root in allowing):
            return "holds the state of this service itself, or lies in it; choose another path"
    # What is written goes by the text of the path, where ".." after a link means another place.
    if verb == "write" and ".." in place.parts:
        return "has .. in it; write the path of an output without"
    return None


def _read_with(place: Path) -> list[Path]:
    """The real paths of ``place`` and of what is read beside or in it: files there may be links, too."""
    path = place.resolve()
    if path.is_dir():
        return [path, *(Path(entry).resolve() for entry in os.scandir(path) if entry.is_symlink())]
    record = place.parent / RECORD
    return [path, record.resolve()] if os.path.lexists(record) else [path]
