"""What can be refused before a fine-tune is queued: no torch, no Ray; of the base the headers, of the data nothing."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import Dataset, FinetuneRequest, Grid
from workers.checkpoints.checkpoint import CheckpointError, local_path, open_checkpoint
from workers.checkpoints.files import is_directory, locate, names_in
from workers.checkpoints.remote.path import parse_remote
from workers.checkpoints.writing import name_problem
from workers.finetuning.datasets.catalogue import CATALOGUE
from workers.finetuning.datasets.hub_address import hub_address, is_hub

PAPER = Grid(learning_rate=[1e-4, 1e-5, 1e-6], steps=[1000, 2000, 3000, 4000])
"""The paper's grid: 3 × 4 runs for each data set."""

FORMATS = {
    "clip": ("image_folder", "parquet"),
    "causal_lm": ("jsonl", "parquet"),
    "classification": ("jsonl", "parquet"),
}
COLUMNS = {
    "clip": ("image", "label"),
    "causal_lm": ("prompt", "response"),
    "classification": ("text", "label"),
}
"""What the columns of a data set are for, by the kind of the task."""

OPEN_CLIP = "open_clip://"

Refuse = Callable[[tuple[str | int, ...], str, str], None]


def check_finetune(request: FinetuneRequest) -> Path:
    """Check ``request``, but for what only its data and model show. Returns the path of its output.

    Raises:
        InvalidRequest: with every problem found, each located in the request.
    """
    errors: list[ErrorItem] = []

    def refuse(loc: tuple[str | int, ...], code: str, message: str) -> None:
        errors.append(ErrorItem(loc=loc, code=code, msg=message))

    task = request.task
    data = check_dataset(task.kind, task.dataset, ("task", "dataset"), refuse)
    inputs = [_check_base(request, refuse), data]
    _check_options(request, refuse)
    output = _check_output(request, [path for path in inputs if path is not None], refuse)
    if errors or output is None:
        raise InvalidRequest(errors)
    return output


def trials(request: FinetuneRequest) -> list[FinetuneRequest]:
    """The runs of a request, each without a grid: itself, or one for each point of its grid."""
    if request.grid is None:
        return [request]
    grid = PAPER if request.grid == "paper" else request.grid
    points = product(grid.learning_rate or [request.train.learning_rate], grid.steps or [request.train.steps])
    return [
        request.model_copy(
            update={
                "grid": None,
                "train": request.train.model_copy(update={"learning_rate": rate, "steps": steps}),
                "output": f"{request.output.rstrip('/')}/lr{_shortest(rate)}-steps{steps}",
            }
        )
        for rate, steps in points
    ]


def _shortest(rate: float) -> str:
    """A text that tells ``rate`` from every other number."""
    short = f"{rate:g}"
    return short if float(short) == rate else repr(rate)


def warnings(request: FinetuneRequest) -> list[str]:
    """What is allowed and probably not meant."""
    found = []
    dataset = request.task.dataset
    hub = [
        uri for uri in (dataset.root, dataset.uri) if uri and is_hub(uri) and not hub_address(uri).revision
    ]
    if request.base.startswith("hf://") and not parse_remote(request.base).revision:
        hub.append(request.base)
    found += [f"{uri} may change; @REVISION pins it, for example to a commit" for uri in hub]
    for trial in trials(request):
        steps, warmup = trial.train.steps, trial.train.warmup_steps
        if steps < warmup:
            found.append(
                f"{steps} steps are fewer than the warm-up of {warmup}: the learning rate ends at "
                f"{steps / warmup * 100:.3g} % of its peak"
            )
        elif steps == warmup:
            found.append(f"{steps} steps are all warm-up: the learning rate ends at its peak and never falls")
    return list(dict.fromkeys(found))


def _check_base(request: FinetuneRequest, refuse: Refuse) -> Path | None:
    loc = ("base",)
    if request.base.startswith(OPEN_CLIP):
        if request.task.kind != "clip":
            refuse(loc, "wrong_kind", f"this is a CLIP model; task.kind is {request.task.kind}")
            return None
        name, *rest = request.base.removeprefix(OPEN_CLIP).partition("/")
        if not name or not all(rest):
            refuse(
                loc,
                "unknown_model",
                "write open_clip://NAME/PRETRAINED, for example open_clip://ViT-B-32/openai",
            )
        elif (known := _open_clip_models()) and name not in known:
            refuse(
                loc, "unknown_model", f"open_clip has no model {name!r}; open_clip.list_models() lists them"
            )
        return None
    try:
        directory = open_checkpoint(request.base).directory
        config = "open_clip_config.json" if request.task.kind == "clip" else "config.json"
        if not is_directory(locate(request.base)) or config not in names_in(directory):
            message = f"it is no directory with {config}, which {request.task.kind} needs"
            refuse(loc, "unsupported_checkpoint", message)
    except CheckpointError as error:
        refuse(loc, error.code, error.message)
    except OSError as error:
        refuse(loc, "checkpoint_unreadable", f"it cannot be listed: {error.strerror}")
    else:
        return directory.resolve() if isinstance(directory, Path) else None
    return None


def _open_clip_models() -> set[str]:
    """Names of the files that describe its models; none where it is not installed. (Importing it imports torch.)"""
    spec = importlib.util.find_spec("open_clip")
    places = (spec and spec.submodule_search_locations) or ()
    return {path.stem for place in places for path in Path(place, "model_configs").glob("*.json")}


def check_dataset(kind: str, dataset: Dataset, loc: tuple[str | int, ...], refuse: Refuse) -> Path | None:
    """Whether ``dataset``, at ``loc``, suits a task of ``kind`` and is there. Returns its path."""
    if dataset.name is not None:
        if kind != "clip":
            refuse((*loc, "name"), "wrong_kind", f"named data sets hold images; the kind is {kind}")
        elif dataset.name not in CATALOGUE:
            message = f"there is no data set {dataset.name!r}; there are {', '.join(CATALOGUE)}"
            refuse((*loc, "name"), "unknown_dataset", message)
    formats, columns = FORMATS[kind], COLUMNS[kind]
    if dataset.format is not None and dataset.format not in formats:
        message = f"{kind} reads {' or '.join(formats)}, not {dataset.format}"
        refuse((*loc, "format"), "wrong_format", message)
    for column in dataset.columns.keys() - set(columns):
        message = f"{kind} has no use for it; the columns are {' and '.join(columns)}"
        refuse((*loc, "columns", column), "unknown_column", message)
    place, uri = ("uri", dataset.uri) if dataset.uri is not None else ("root", dataset.root or "")
    if not is_hub(uri):
        return _existing(uri, (*loc, place), refuse)
    try:
        hub_address(uri)
    except ValueError as error:
        refuse((*loc, place), "unsupported_uri", str(error))
    return None


def check_templates(templates: Sequence[str] | None, loc: tuple[str | int, ...], refuse: Refuse) -> None:
    """Whether each prompt of a task at ``loc`` has one place for the name of a class."""
    for template in templates or ():
        if template.count("{}") != 1:
            message = f"a template holds {{}} once, where the class name goes; {template!r} does not"
            refuse((*loc, "templates"), "malformed_template", message)


def dataset_places(dataset: Dataset) -> list[tuple[str, str]]:
    """Field and URI of every place that a data set is read from."""
    given = (("root", dataset.root), ("uri", dataset.uri))
    return [(field, uri) for field, uri in given if uri is not None]


def _check_options(request: FinetuneRequest, refuse: Refuse) -> None:
    task, train = request.task, request.train
    check_templates(task.templates, ("task",), refuse)
    if task.kind == "clip":
        if request.adapter is not None and request.adapter.kind == "qlora":
            refuse(
                ("adapter", "kind"), "wrong_kind", "qlora is for language models; use lora, or leave it out"
            )
        if train.gradient_checkpointing:
            refuse(
                ("train", "gradient_checkpointing"), "wrong_kind", "it is for language models; leave it out"
            )
        if task.max_length is not None:
            refuse(("task", "max_length"), "wrong_kind", "it is for language models; leave it out")
    elif task.templates is not None:
        refuse(("task", "templates"), "wrong_kind", f"{task.kind} has no prompts; leave them out")
    if task.packing and task.kind != "causal_lm":
        refuse(("task", "packing"), "wrong_kind", "only causal_lm packs sequences; leave it out")
    if request.resources.workers > train.batch_size:
        message = f"{train.batch_size} examples cannot be shared by {request.resources.workers} workers"
        refuse(("resources", "workers"), "too_many_workers", message)
    outputs = [trial.output for trial in trials(request)]
    if len(set(outputs)) < len(outputs):
        refuse(("grid",), "repeated_value", "a value stands twice; list each once")


def _check_output(request: FinetuneRequest, inputs: list[Path], refuse: Refuse) -> Path | None:
    loc = ("output",)
    try:
        output = Path(os.path.normpath(local_path(request.output)))
    except CheckpointError as error:
        refuse(loc, error.code, error.message)
        return None
    if problem := name_problem(output):
        refuse(loc, "output_not_writable", f"{problem}; choose a shorter one")
        return None
    resolved = output.resolve()
    if any(resolved == path or path in resolved.parents or resolved in path.parents for path in inputs):
        refuse(loc, "output_inside_input", "it overlaps the base or the data; choose another directory")
    elif os.path.lexists(output) and not (request.grid is not None and output.is_dir()):
        # A grid goes on in its directory: trials that are there are not run again.
        refuse(loc, "output_exists", "it exists; choose another directory")
    else:
        parent = next(parent for parent in (output, *output.parents) if os.path.lexists(parent))
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            refuse(loc, "output_not_writable", f"nothing can be written in {parent}")
    return output


def _existing(uri: str, loc: tuple[str | int, ...], refuse: Refuse) -> Path | None:
    try:
        path = local_path(uri)
    except CheckpointError as error:
        refuse(loc, error.code, error.message)
        return None
    try:
        there = path.exists()
    except OSError:  # a name that no disk takes
        there = False
    if not there:
        refuse(loc, "not_found", f"there is nothing at {uri}")
        return None
    return path.resolve()
