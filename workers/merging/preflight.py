"""The preflight of a merge: every check that headers allow, and the plan that comes out of it.

No torch, no Ray: the API runs it before it accepts a request.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import MergeRequest, Training
from workers.aggregation import Rule, build_rule
from workers.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    read_training,
)
from workers.checkpoints.dtypes import FLOATS
from workers.checkpoints.files import UNFINISHED, FileState, Location, local_path, locate, names_in
from workers.checkpoints.layout import lay_out
from workers.checkpoints.pickles import open_pickled, pickled_files
from workers.checkpoints.remote.path import WRITABLE, RemotePath
from workers.checkpoints.writing import free_bytes, name_problem
from workers.merging.compare import Comparison, compare
from workers.merging.plan import MergePlan, output_dtype

PACKED_SHARE = 0.01
"""Share of non-float bytes from which a base looks quantised."""


def plan_merge(
    request: MergeRequest,
    *,
    workers: int,
    worker_memory: int,
    writes: bool = True,
    pickle_dir: Path | None = None,
) -> MergePlan:
    """Check ``request`` against the checkpoints that it names, and plan it.

    Args:
        writes: whether the merge is written; else its output is not looked at.
        pickle_dir: where pickled weights are converted; without it they are refused.

    Raises:
        InvalidRequest: with every problem found, each located in the request.
    """
    errors: list[ErrorItem] = []
    rule: Rule | None = None
    try:
        rule = build_rule(request.method)
    except InvalidRequest as error:
        errors += error.errors
    errors += _weight_problems(request, rule)
    opened = [
        _open(uri, loc, pickle_dir, errors)
        for uri, loc in [
            (request.base, ("base",)),
            *((model.uri, ("models", index, "uri")) for index, model in enumerate(request.models)),
        ]
    ]
    present = [checkpoint for checkpoint in opened if checkpoint is not None]
    output: Location | None = Path(request.output)
    if writes:
        output = _output(request.output, request.overwrite, present, errors)
    training = [
        _training(request, index, checkpoint, rule, errors)
        for index, checkpoint in enumerate(opened[1:])
        if checkpoint is not None
    ]
    if len(present) < len(opened):
        raise InvalidRequest(errors)
    base, *models = present
    comparison = compare(base, models, request.keys)
    errors += comparison.errors
    if errors or rule is None or output is None:
        raise InvalidRequest(errors)
    files = lay_out(
        [
            (name, output_dtype(request, stored.info.dtype), stored.info.shape)
            for name, stored in base.tensors.items()
        ],
        stem="open_clip_model" if base.stem == "open_clip_model" else "model",
        max_shard_bytes=request.max_shard_bytes,
        metadata=base.metadata,
    )
    if writes and isinstance(output, Path):
        _check_space(output, sum(file.size for file in files))
    return MergePlan(
        request=request,
        rule=rule,
        base=base,
        models=tuple(models),
        training=tuple(training),
        comparison=comparison,
        files=files,
        output=output,
        workers=workers,
        worker_memory=worker_memory,
        warnings=tuple(_warnings(base, models, comparison)),
    )


def _open(
    uri: str, loc: tuple[str | int, ...], pickle_dir: Path | None, errors: list[ErrorItem]
) -> Checkpoint | None:
    try:
        if pickle_dir and (pickled := pickled_files(uri)):
            return open_pickled(uri, pickled, pickle_dir)
        return open_checkpoint(uri)
    except CheckpointError as error:
        errors.append(ErrorItem(loc=loc, code=error.code, msg=error.message))
        return None


def _weight_problems(request: MergeRequest, rule: Rule | None) -> list[ErrorItem]:
    errors: list[ErrorItem] = []

    def refuse(index: int, field: str, code: str, message: str) -> None:
        errors.append(ErrorItem(loc=("models", index, field), code=code, msg=message))

    weighted = [index for index, model in enumerate(request.models) if model.weight is not None]
    with_coefficient = [index for index, model in enumerate(request.models) if model.coefficient is not None]
    if with_coefficient:
        for index in sorted(set(range(len(request.models))) - set(with_coefficient)):
            refuse(
                index, "coefficient", "missing_coefficient", "give a coefficient to every model, or to none"
            )
    elif not any(model.weight != 0 for model in request.models):
        refuse(0, "weight", "zero_weights", "the weights sum to zero; make at least one positive")
    if rule is None:
        return errors
    if weighted and not rule.accepts_weights:
        refuse(weighted[0], "weight", "weights_not_allowed", f"{rule.name} takes no weights; leave them out")
    if with_coefficient and not rule.accepts_coefficients:
        message = f"{rule.name} takes no coefficients; use task_arithmetic, or weights"
        refuse(with_coefficient[0], "coefficient", "coefficients_not_allowed", message)
    return errors


def _training(
    request: MergeRequest, index: int, checkpoint: Checkpoint, rule: Rule | None, errors: list[ErrorItem]
) -> Training:
    given = request.models[index].training or Training()
    recorded = Training()
    needed = rule.training_field if rule else None
    missing = needed if needed and getattr(given, needed) is None else None
    loc = ("models", index, "training", missing or "")
    try:
        recorded = read_training(checkpoint)
    except CheckpointError as error:  # else the receipt does without it
        if missing:
            errors.append(ErrorItem(loc=loc, code=error.code, msg=error.message))
            return given
    if missing and getattr(recorded, missing) is None:
        message = (
            f"{rule.name if rule else 'the rule'} needs {missing} of {request.models[index].uri}, and there is "
            f"no training.json with it beside the checkpoint, and of it alone; give training.{missing} in the request"
        )
        errors.append(ErrorItem(loc=loc, code="missing_training", msg=message))
    return recorded.model_copy(update=given.model_dump(exclude_none=True))


def _output(
    uri: str, overwrite: bool, inputs: Sequence[Checkpoint], errors: list[ErrorItem]
) -> Location | None:
    """As ``output_path``, or a directory in a store."""
    try:
        place = locate(uri)
        if not isinstance(place, RemotePath):
            return output_path(uri, overwrite, inputs, errors)
        problem = _store_problem(place, overwrite, inputs)
    except CheckpointError as error:
        problem = (error.code, error.message)
    except OSError as error:
        problem = ("output_not_writable", f"it cannot be looked at: {error.strerror}")
    if problem is None:
        return place
    errors.append(ErrorItem(loc=("output",), code=problem[0], msg=problem[1]))
    return None


def _store_problem(
    place: RemotePath, overwrite: bool, inputs: Sequence[Checkpoint]
) -> tuple[str, str] | None:
    """Code and message of what keeps an output from being written to ``place``; raises ``OSError``."""
    if place.scheme not in WRITABLE:
        return (
            "unsupported_uri",
            f"outputs go to {' or '.join(f'{one}://' for one in WRITABLE)}, or to a disk",
        )
    if not place.key:
        return "output_not_writable", "a whole bucket is no place for a checkpoint; name a directory in it"
    if place.suffix == ".safetensors":
        return "output_not_directory", "the output is a directory; leave out the file name"
    for checkpoint in inputs:
        theirs = checkpoint.directory.segments if isinstance(checkpoint.directory, RemotePath) else ()
        shared = min(len(theirs), len(place.segments))
        if shared and theirs[:shared] == place.segments[:shared]:
            return "output_inside_input", f"it overlaps the input {checkpoint.uri}; choose another directory"
    found = names_in(place)
    if (
        found and UNFINISHED not in found and not overwrite
    ):  # whose the unfinished one is shows when the job begins
        return "output_exists", "it exists; choose another directory, or set overwrite"
    return None


def output_path(
    uri: str, overwrite: bool, inputs: Sequence[Checkpoint], errors: list[ErrorItem]
) -> Path | None:
    """The directory that ``uri`` names, if it can be written; what stands in the way goes to ``errors``."""

    def refuse(code: str, message: str) -> None:
        errors.append(ErrorItem(loc=("output",), code=code, msg=message))

    try:
        # normalised as text: what the path leads to may change until the merge is done
        output = Path(os.path.normpath(local_path(uri)))
    except CheckpointError as error:
        refuse(error.code, error.message)
        return None
    if problem := name_problem(output):
        refuse("output_not_writable", f"{problem}; choose a shorter one")
        return None
    resolved = output.resolve()
    for checkpoint in inputs:
        paths = [checkpoint.directory, *(file.path for file in checkpoint.files)]
        taken = {path.resolve() for path in paths if isinstance(path, Path)}
        if any(resolved == path or resolved in path.parents or path in resolved.parents for path in taken):
            refuse("output_inside_input", f"it overlaps the input {checkpoint.uri}; choose another directory")
            return None
    if output == Path("/"):
        refuse("output_not_writable", "this is no place for a checkpoint; name a new directory")
    elif output.suffix == ".safetensors":
        refuse("output_not_directory", "the output is a directory; leave out the file name")
    elif os.path.lexists(output) and not overwrite:
        refuse("output_exists", "it exists; choose another directory, or set overwrite")
    else:
        parent = next(parent for parent in output.parents if os.path.lexists(parent))
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            refuse("output_not_writable", f"the service may not write in {parent}")
    return output


def _check_space(output: Path, needed: int) -> None:
    free = free_bytes(output)
    if free < needed:
        message = (
            f"the output takes {needed} bytes and its disk has {free} free; make room or choose another disk"
        )
        raise InvalidRequest.at(["output"], "insufficient_space", message)


def _warnings(base: Checkpoint, models: Sequence[Checkpoint], comparison: Comparison) -> list[str]:
    warnings = []
    first_by_files: dict[tuple[FileState, ...], int] = {}
    base_files = _files(base)
    for index, model in enumerate(models):
        files = _files(model)
        if files == base_files:
            warnings.append(f"models.{index} is the base itself; its task vector is zero")
        elif files in first_by_files:
            warnings.append(f"models.{index} is the same checkpoint as models.{first_by_files[files]}")
        first_by_files.setdefault(files, index)
    sizes = {name: stored.info.nbytes for name, stored in base.tensors.items()}
    packed = sum(sizes[name] for name in comparison.copied if base.tensors[name].info.dtype not in FLOATS)
    if packed > PACKED_SHARE * sum(sizes.values()):
        share = packed / sum(sizes.values())
        warnings.append(
            f"{share:.0%} of the base are non-float tensors, which are copied from the base; is it quantised?"
        )
    floats = [name for name in comparison.copied if base.tensors[name].info.dtype in FLOATS]
    if floats:
        warnings.append(
            f"{len(floats)} float tensors are not in every model and are copied from the base, {floats[0]} first"
        )
    for index, dropped in enumerate(comparison.dropped):
        if dropped:
            warnings.append(f"{len(dropped)} tensors of models.{index} are left out, {dropped[0]} first")
    return warnings


def _files(checkpoint: Checkpoint) -> tuple[FileState, ...]:
    return tuple(file.state for file in checkpoint.files)
