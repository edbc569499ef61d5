"""A model under evaluation, whose parameters are set in place to θ₀ + λ·V. Needs torch, not Ray."""

from __future__ import annotations

import logging
import mmap
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taumerge.errors import InvalidRequest, JobFailed, TaumergeError
from taumerge.schemas import EvaluationSpec, Split
from workers.aggregation.kernel import BLOCK, add_scaled
from workers.checkpoints.checkpoint import Checkpoint, StoredTensor
from workers.checkpoints.files import FileRecord
from workers.checkpoints.reading import open_reader
from workers.hardware import choose_hardware, lacks_memory
from workers.merging.shard import TORCH_DTYPES
from workers.merging.unit import MergedSlice, Slice, Source

if TYPE_CHECKING:
    from workers.evaluation.evaluator import Evaluator

log = logging.getLogger(__name__)

NAMED = 10
CHUNK = 4 * BLOCK
"""Elements of θ₀, V and θ that a thread works on at a time, so that λ·V is still in its cache when it is corrected."""


class MergedModel:
    """An evaluator's model, moved from one merge to the next.

    θ is rounded as a merge to disk rounds it, and then to the type in which the model computes: what is scored is
    what one would load from the merged checkpoint. θ₀ is mapped from its files, not copied; one in a store is copied to
    the disk first.

    Args:
        names: the tensors of the merge plan; a slice names its tensor by the place in it.
        merged: those that a merge changes.
        threads: of a CPU.

    Raises:
        InvalidRequest: ``architecture_mismatch``: the model lacks tensors that a merge changes.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        base: Checkpoint,
        names: Sequence[str],
        merged: Collection[str],
        threads: int = 1,
    ) -> None:
        self.evaluator = evaluator
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._base = base
        self._names = names
        self._files: dict[FileRecord, mmap.mmap] = {}
        self._moved: set[tuple[int, int]] = set()
        """Slices, by tensor and start, that differ from θ₀."""
        self._foreign = False
        """Whether a whole checkpoint was loaded, so that any tensor may differ."""
        self._flat = {name: _flat(name, tensor) for name, tensor in evaluator.parameters.items()}
        if absent := sorted(set(merged) - self._flat.keys()):
            raise InvalidRequest.at(
                ("base",),
                "architecture_mismatch",
                f"the model that evaluation.kind builds has no place for {', '.join(absent[:NAMED])} "
                f"({len(absent)} tensors in all); choose the kind that fits the base",
            )

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        """Take the tensors of ``checkpoint`` as they are stored, and from the base what it lacks."""
        for name, flat in self._flat.items():
            holder, stored = self._base, self._base.find(name)
            found = checkpoint.find(name)
            if stored is None or (found and found.info.shape == stored.info.shape):
                holder, stored = checkpoint, found
            if stored is not None and stored.info.elements:
                flat.copy_(self._stored(holder, stored))
        self._moved.clear()
        self._foreign = checkpoint is not self._base

    @torch.no_grad()
    def move(self, slices: Sequence[Slice], merged: Sequence[MergedSlice], scaling: float) -> set[str]:
        """Set ``slices`` to θ₀ + λ·V. Returns the tensors with values outside the range of their stored type."""
        if self._foreign:
            self.load(self._base)
        overflowed = set()
        with explained("setting the model to θ₀ + λ·V"), _serial_operations():
            for part, one in zip(slices, merged, strict=True):
                place = (part.tensor, part.start)
                flat = self._flat[self._names[part.tensor]][part.start : part.start + part.elements]
                if one.values is None:
                    if place in self._moved:
                        flat.copy_(self._mapped(part.base, part.elements))
                        self._moved.discard(place)
                    continue
                self._moved.add(place)
                if not self._move_slice(part, one, scaling, flat):
                    overflowed.add(self._names[part.tensor])
        return overflowed

    def score(self, tasks: Sequence[str], split: Split) -> tuple[dict[str, float], float]:
        """The score of each task, and the seconds that it took."""
        begun = time.perf_counter()
        scores: dict[str, float] = {}
        for task in tasks:
            with explained(f"scoring task {task!r}"):
                scores[task] = self.evaluator.evaluate(task, split)
        return scores, time.perf_counter() - begun

    def _move_slice(self, part: Slice, one: MergedSlice, scaling: float, flat: Tensor) -> bool:
        """Set one slice; whether all of it is in the range of its type."""
        base, merged = self._mapped(part.base, part.elements), _tensor(one)
        stored, narrowed = TORCH_DTYPES[part.dtype], part.dtype != part.base.dtype
        on_cpu = flat.device.type == "cpu"
        chunk = min(CHUNK, part.elements) if on_cpu else part.elements

        @torch.no_grad()
        def move(first: int, step: int) -> bool:
            """Every so many chunks from the first on."""
            rounded = torch.empty(0 if stored == flat.dtype else chunk, dtype=stored, device=flat.device)
            fits = True
            for start in range(first * chunk, part.elements, step * chunk):
                values = flat[start : start + chunk]
                vector = merged[start : start + chunk].to(flat.device)
                out = values if values.dtype == stored else rounded[: len(values)]
                wide = values if values.dtype == vector.dtype else None
                original = base[start : start + chunk].to(flat.device)
                fits &= add_scaled(original, vector, scaling, one.square, out, narrowed=narrowed, wide=wide)
                if out is not values:
                    values.copy_(out)
            return fits

        if part.elements <= chunk or self._threads == 1:
            return move(0, 1)
        return all(list(self._pool.map(move, range(self._threads), [self._threads] * self._threads)))

    def _stored(self, checkpoint: Checkpoint, stored: StoredTensor) -> Tensor:
        source = Source(checkpoint.files[stored.file], stored.info.offset, stored.info.dtype)
        return self._mapped(source, stored.info.elements)

    def _mapped(self, source: Source, elements: int) -> Tensor:
        """Elements of a file, flat; not to be written to."""
        if source.file not in self._files:
            with open_reader(source.file) as reader:
                self._files[source.file] = reader.map()
        with warnings.catch_warnings(action="ignore"):  # that it is not writable
            return torch.frombuffer(
                self._files[source.file],
                dtype=TORCH_DTYPES[source.dtype],
                count=elements,
                offset=source.offset,
            )


def build_model(
    base: Checkpoint,
    spec: EvaluationSpec,
    tasks: Sequence[str],
    threads: int,
    names: Sequence[str],
    merged: Collection[str],
    *,
    code_allowed: bool,
) -> MergedModel:
    """The model of ``spec`` with the parameters of ``base``, and the data of ``tasks``.

    Args:
        threads: of a CPU; a GPU is fed by as many as torch likes.
        code_allowed: whether tasks may run code.

    Raises:
        InvalidRequest, JobFailed: what only the data or the model shows.
    """
    from workers.evaluation.evaluator import build_evaluator

    hardware = choose_hardware("auto")
    if hardware.device.type == "cpu":
        torch.set_num_threads(threads)
    with explained(f"building the model of evaluation.kind {spec.kind}, and reading {', '.join(tasks)},"):
        evaluator = build_evaluator(base.uri, spec, tasks, hardware, code_allowed=code_allowed)
    return MergedModel(evaluator, base, names, merged, threads)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Inside, whatever a model, its library or an evaluator that a deployment added raises becomes an error of ours.

    Args:
        doing: what fails then, for the message.

    Raises:
        JobFailed: ``out_of_memory`` or ``evaluation_failed``.
    """
    try:
        yield
    except TaumergeError:
        raise
    except Exception as error:
        log.warning("%s failed", doing, exc_info=True)
        if lacks_memory(error):
            raise JobFailed(
                "out_of_memory",
                f"{doing} took more memory than there is; lower evaluation.batch_size, or evaluation.evaluators where "
                "several share the GPU or the machine",
            ) from error
        said = next(iter(str(error).splitlines()), "")
        raise JobFailed(
            "evaluation_failed",
            f"{doing} failed: {type(error).__name__}: {said}. The log of the evaluator's process has the rest",
        ) from error


@contextmanager
def _serial_operations() -> Iterator[None]:
    """Inside, torch runs an operation on the thread that asks for it.

    One on a chunk takes microseconds; torch's own threads would wait for each other at the end of each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _flat(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise JobFailed(
            "architecture_mismatch",
            f"tensor {name} of the evaluator's model is not contiguous, so it cannot be set in place",
        )
    return tensor.detach().view(-1)


def _tensor(one: MergedSlice) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # that it is not writable
        return torch.from_numpy(one.values)
