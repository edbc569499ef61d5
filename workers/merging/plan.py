"""The plan of a merge: which tensors go where, in which order, by which worker. No torch, no Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from taumerge.schemas import MergeRequest, Plan, Shard, Training
from workers.aggregation import Contribution, Rule
from workers.checkpoints.adapter import Delta, LowRank
from workers.checkpoints.checkpoint import Checkpoint, StoredTensor
from workers.checkpoints.dtypes import FLOATS, FROM_NAME, ITEMSIZE
from workers.checkpoints.files import Location
from workers.checkpoints.layout import FileLayout
from workers.merging.compare import Comparison
from workers.merging.unit import CHUNK, SLICE, LowRankSource, Slice, Source, Unit

UNIT_BYTES = 1 << 26
"""Input bytes of a unit at most, about: a fraction of a second of work, so that cancelling and redoing cost little."""
WORKSPACE_CHUNKS = 4
"""Chunks of float64 that one model needs at most while it is worked on, temporaries of the rules included."""


@dataclass(frozen=True)
class MergePlan:
    """A merge that can be carried out."""

    request: MergeRequest
    rule: Rule
    base: Checkpoint
    models: tuple[Checkpoint, ...]
    training: tuple[Training, ...]
    comparison: Comparison
    files: tuple[FileLayout, ...]
    """The output files, known to the byte."""
    output: Location
    workers: int
    worker_memory: int
    warnings: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The tensors of the output; a tensor's index is its place here."""
        return [name for file in self.files for name in file.tensors]

    @property
    def inputs(self) -> str:
        """Fingerprint of all input files."""
        prints = [checkpoint.fingerprint for checkpoint in (self.base, *self.models)]
        return hashlib.sha256(json.dumps(prints).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Fingerprint of everything that decides the output: inputs, request, training records, layout."""
        layout = [(file.name, file.size) for file in self.files]
        training = [one.model_dump() for one in self.training]
        text = json.dumps(
            [self.inputs, self.request.model_dump(mode="json"), training, layout], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def slice_elements(self) -> int:
        """Elements of a slice at most. Sums are added slice by slice, so nothing but the request may decide it."""
        widest = max(ITEMSIZE[self.base.tensors[name].info.dtype] for name in self.comparison.merged)
        fitting = UNIT_BYTES // (widest * (len(self.models) + 1))
        return min(SLICE, max(CHUNK, 1 << (fitting.bit_length() - 1)))

    def contributions(self, models: Sequence[int]) -> list[Contribution]:
        """What the rule may know of those ``models``; their weights are normalised among themselves.

        An absent weight is 1; coefficients replace the weights.
        """
        references = [self.request.models[index] for index in models]
        weights = [
            1.0 if one.weight is None or one.coefficient is not None else one.weight for one in references
        ]
        total = sum(weights)
        return [
            Contribution(weight / total, one.coefficient, self.training[index])
            for weight, one, index in zip(weights, references, models, strict=True)
        ]

    def units(self, models: Sequence[int] | None = None, copied: frozenset[str] = frozenset()) -> list[Unit]:
        """The work, in the order of the output files, balanced by input bytes over the workers.

        Args:
            models: indices of the models that take part; all of them by default.
            copied: tensors to copy from the base besides those that the plan copies.
        """
        taking_part = range(len(self.models)) if models is None else models
        unmerged = copied.union(self.comparison.copied)
        largest = self.slice_elements
        loads = [0] * self.workers
        units: list[Unit] = []
        index = 0
        for file in self.files:
            pending: list[Slice] = []
            elements = 0
            for name, (offset, _) in file.tensors.items():
                for part in self._slices(index, name, offset, taking_part, name not in unmerged, largest):
                    if pending and elements + part.elements > largest:
                        units.append(_assign(file.name, pending, loads))
                        pending, elements = [], 0
                    pending.append(part)
                    elements += part.elements
                index += 1
            if pending:
                units.append(_assign(file.name, pending, loads))
        return units

    def _slices(
        self, index: int, name: str, offset: int, models: Sequence[int], merged: bool, length: int
    ) -> list[Slice]:
        base = self.base.tensors[name]
        base_source = _source(self.base, base)
        dtype = output_dtype(self.request, base.info.dtype)
        found = [(self.models[model], *self._find(model, name)) for model in models]
        sources = [
            _source(model, stored) if stored else base_source
            for model, stored, _ in found
            if merged or (stored and _same_bits(base, stored))
        ]
        low_rank = [_low_rank_source(model, one) if one else None for model, _, one in found]
        total = base.info.elements
        return [
            Slice(
                tensor=index,
                start=start,
                elements=min(length, total - start),
                base=base_source.part(start),
                models=tuple(source.part(start) for source in sources),
                low_rank=tuple(low_rank) if merged else (),
                merged=merged,
                dtype=dtype,
                offset=offset + start * ITEMSIZE[dtype],
            )
            for start in range(0, total, length)
        ]

    def _find(self, model: int, name: str) -> tuple[StoredTensor | None, LowRank | None]:
        """What a model has in the place of a tensor of the base, and what it adds to it as an adapter."""
        if model not in self.comparison.adapters:
            return self.models[model].find(name), None
        delta = self.comparison.adapters[model].get(name, Delta())
        return delta.replacement, delta.low_rank

    def peak_memory(self, input_bytes: int, ahead_bytes: int) -> int:
        """Upper bound of the private bytes that such a share adds to a worker: resident inputs, workspace, factors.

        Args:
            ahead_bytes: fetched for one unit at most. They count twice: a body arrives in pieces that are joined.
        """
        workspace = (len(self.models) + 1) * WORKSPACE_CHUNKS * CHUNK * 8
        factors = sum(
            max((_wide_bytes(delta.low_rank) for delta in deltas.values() if delta.low_rank), default=0)
            for deltas in self.comparison.adapters.values()
        )
        return min(self.worker_memory, input_bytes) + workspace + factors + 2 * ahead_bytes

    def describe(self) -> Plan:
        """The plan as the contract shows it."""
        units = self.units()
        shards = [0] * self.workers
        for unit in units:
            shards[unit.worker] += unit.input_bytes
        return Plan(
            tensors=len(self.base.tensors),
            parameters=sum(self.base.tensors[name].info.elements for name in self.comparison.merged),
            input_bytes=sum(shards),
            output_bytes=sum(file.size for file in self.files),
            workers=self.workers,
            shards=[Shard(worker=worker, bytes=nbytes) for worker, nbytes in enumerate(shards)],
            peak_memory_bytes=self.peak_memory(
                max(shards), max((unit.remote_bytes for unit in units), default=0)
            ),
            warnings=list(self.warnings),
        )


def output_dtype(request: MergeRequest, base_dtype: str) -> str:
    """Element type in the output of a tensor that has ``base_dtype`` in the base."""
    return FROM_NAME[request.dtype] if request.dtype and base_dtype in FLOATS else base_dtype


def _same_bits(base: StoredTensor, model: StoredTensor) -> bool:
    """Whether a copied tensor can be compared byte by byte; float tensors outside the merge need not be."""
    same_form = (base.info.shape, base.info.dtype) == (model.info.shape, model.info.dtype)
    return same_form and base.info.dtype not in FLOATS


def _source(checkpoint: Checkpoint, stored: StoredTensor) -> Source:
    return Source(checkpoint.files[stored.file], stored.info.offset, stored.info.dtype)


def _low_rank_source(checkpoint: Checkpoint, one: LowRank) -> LowRankSource:
    return LowRankSource(
        _source(checkpoint, one.a),
        _source(checkpoint, one.b),
        rank=one.rank,
        inputs=one.inputs,
        outputs=one.outputs,
        scaling=one.scaling,
        transposed=one.transposed,
    )


def _wide_bytes(one: LowRank) -> int:
    """Bytes of the factors of a tensor as they are stored, and converted for the multiplication."""
    elements = one.a.info.elements + one.b.info.elements
    return one.a.info.nbytes + one.b.info.nbytes + elements * 8


def _assign(file: str, slices: Sequence[Slice], loads: list[int]) -> Unit:
    """Give the slices to the worker with the least to do so far; ``loads`` is updated."""
    worker = loads.index(min(loads))
    unit = Unit(worker, file, tuple(slices))
    loads[worker] += unit.input_bytes
    return unit
