"""The shard worker's work on one unit: read, aggregate, write. Needs torch, not Ray."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.aggregation.agreement import sign_agreement
from workers.aggregation.kernel import (
    BLOCK,
    Workspace,
    accumulation_dtype,
    add_scaled,
    aggregate,
    gram_matrix,
    sums_of_squares,
)
from workers.aggregation.rule import Needs, Rule
from workers.checkpoints.dtypes import ITEMSIZE
from workers.checkpoints.files import FileRecord
from workers.checkpoints.reading import Reader, open_reader
from workers.checkpoints.writing import FileWriter, sha256_of, sync
from workers.hardware import choose_hardware
from workers.merging.low_rank import LowRankProduct
from workers.merging.residency import Residency
from workers.merging.unit import (
    CHUNK,
    DirectionPart,
    Findings,
    LowRankSource,
    MergedSlice,
    Slice,
    SliceSums,
    Source,
    Unit,
)

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
CUDA_CHUNK = 64 * BLOCK


class ShardWorker:
    """Works on the units of one shard, and keeps up to ``memory`` bytes of their inputs resident.

    Every method is idempotent: it may be called again, on this worker or another one, with the same effect.
    """

    def __init__(self, memory: int, chunk_elements: int | None = None) -> None:
        torch.set_num_threads(1)  # workers are the parallelism
        _keep_freed_memory()
        self._device = choose_hardware("float32").device
        self._chunk = chunk_elements or (CHUNK if self._device.type == "cpu" else CUDA_CHUNK)
        if self._chunk % BLOCK:
            raise ValueError(f"chunk_elements must be a multiple of {BLOCK}")
        self._resident = Residency(memory)
        self._buffers: list[Tensor] = []

    @property
    def resident_bytes(self) -> int:
        """Bytes of tensors that it keeps between merges."""
        return self._resident.used

    def measure(self, unit: Unit, inputs: str, needs: Needs) -> Findings:
        """Pass 1: norms or Gram matrices of the task vectors, and what is not finite in them."""
        findings = Findings()
        merged = [part for part in unit.slices if part.merged]
        with _Readers(findings, merged, self._resident) as readers:
            for part in merged:
                gram = np.zeros((len(part.models), len(part.models)))
                for _, wide_base, task_vectors in self._task_vectors(part, inputs, readers):
                    gram = _inner_products(task_vectors, needs, gram)
                    if not np.isfinite(gram).all():
                        _count_nonfinite(findings, part, wide_base, task_vectors)
                findings.sums.append(SliceSums(part.tensor, gram))
        return findings

    def survey(self, unit: Unit, inputs: str) -> Findings:
        """What the diagnostics need: Gram matrices, sign agreement, and what is not finite."""
        findings = Findings()
        merged = [part for part in unit.slices if part.merged]
        with _Readers(findings, merged, self._resident) as readers:
            for part in merged:
                count = len(part.models)
                gram, agreement = np.zeros((count, count)), np.zeros(count + 1, np.int64)
                for _, wide_base, task_vectors in self._task_vectors(part, inputs, readers):
                    gram = gram_matrix(task_vectors, gram)
                    if np.isfinite(gram).all():
                        agreement += sign_agreement(task_vectors)
                    else:
                        _count_nonfinite(findings, part, wide_base, task_vectors)
                findings.sums.append(SliceSums(part.tensor, gram))
                findings.agreement[part.tensor] = findings.agreement.get(part.tensor, 0) + agreement
        return findings

    def merge(
        self,
        unit: Unit,
        inputs: str,
        directory: Path,
        rule: Rule,
        coefficients: Sequence[Sequence[float]],
        scaling: float,
        statistics: Needs,
    ) -> Findings:
        """Pass 2: write the slices of ``unit`` to the laid-out file in ``directory``.

        Args:
            coefficients: for each slice of the unit one number for each of its models.
            statistics: what to measure on the way.
        """
        findings = Findings()
        readers = _Readers(findings, unit.slices, self._resident)
        with readers, FileWriter(directory / unit.file) as writer:
            for part, numbers in zip(unit.slices, coefficients, strict=True):
                if part.merged:
                    self._merge_slice(
                        part, inputs, readers, writer, rule, numbers, scaling, statistics, findings
                    )
                else:
                    self._copy_slice(part, inputs, readers, writer, findings)
        return findings

    def direction(
        self, unit: Unit, inputs: str, rule: Rule, coefficients: Sequence[Sequence[float]]
    ) -> tuple[DirectionPart, list[MergedSlice]]:
        """V of each merged slice of ``unit``, as ``merge`` would scale it and add it to the base.

        Args:
            coefficients: for each slice of the unit one number for each of its models.
        """
        findings = Findings()
        slices: list[MergedSlice] = []
        with _Readers(findings, unit.slices, self._resident) as readers:
            for part, numbers in zip(unit.slices, coefficients, strict=True):
                if part.merged:
                    slices.append(self._direction_of(part, inputs, readers, rule, numbers))
        digest, nbytes = sha256(), 0
        for one in slices:
            digest.update(b"0" if one.values is None else b"1")
            if one.values is not None:
                digest.update(one.values.data)
                nbytes += one.values.nbytes
        return DirectionPart(digest.digest(), nbytes, findings.bytes_read), slices

    def finish(self, path: Path) -> str:
        """Bring a complete output file to the disk; returns its SHA-256 in hex."""
        digest = sha256_of(path)
        sync(path)
        return digest

    def _merge_slice(
        self,
        part: Slice,
        inputs: str,
        readers: _Readers,
        writer: FileWriter,
        rule: Rule,
        coefficients: Sequence[float],
        scaling: float,
        statistics: Needs,
        findings: Findings,
    ) -> None:
        out = torch.empty(self._chunk, dtype=TORCH_DTYPES[part.dtype], device=self._device)
        gram = np.zeros((len(part.models), len(part.models)))
        merged_square = 0.0
        for start, wide_base, task_vectors in self._task_vectors(part, inputs, readers):
            gram = _inner_products(task_vectors, statistics, gram)
            values = out[: wide_base.numel()]
            merged, merged_square = aggregate(rule, task_vectors, coefficients, merged_square)
            narrowed = part.dtype != part.base.dtype
            in_range = add_scaled(wide_base, merged, scaling, merged_square, values, narrowed=narrowed)
            if not np.isfinite(gram).all() or not in_range:
                _count_nonfinite(findings, part, wide_base, task_vectors)
                findings.overflowed.add(part.tensor)
            writer.write_at(_bytes_of(values), part.offset + start * ITEMSIZE[part.dtype])
        findings.sums.append(SliceSums(part.tensor, gram, merged_square))

    def _direction_of(
        self, part: Slice, inputs: str, readers: _Readers, rule: Rule, coefficients: Sequence[float]
    ) -> MergedSlice:
        whole: Tensor | None = None
        square = 0.0
        for start, _, task_vectors in self._task_vectors(part, inputs, readers):
            merged, square = aggregate(rule, task_vectors, coefficients, square)
            if whole is None:
                whole = torch.empty(part.elements, dtype=merged.dtype)
            whole[start : start + merged.numel()] = merged
        if whole is None or (square == 0 and not whole.any()):  # the squares of small numbers may vanish
            return MergedSlice(None, 0.0)
        return MergedSlice(whole.numpy(), square)

    def _copy_slice(
        self, part: Slice, inputs: str, readers: _Readers, writer: FileWriter, findings: Findings
    ) -> None:
        for start, base, models in self._chunks(part, inputs, readers):
            if not all(torch.equal(base, model) for model in models):
                findings.differing.add(part.tensor)
            values = base
            if part.dtype != part.base.dtype:
                values = base.to(TORCH_DTYPES[part.dtype])
                if not torch.isfinite(values).all():
                    _count_nonfinite(findings, part, base, [])
                    findings.overflowed.add(part.tensor)
            writer.write_at(_bytes_of(values), part.offset + start * ITEMSIZE[part.dtype])

    def _task_vectors(
        self, part: Slice, inputs: str, readers: _Readers
    ) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """Chunks of θ₀ and of every τ_t, as ``(first element in the slice, θ₀, task vectors)``.

        The tensors are valid until the next step.
        """
        factors = [source for one in part.low_rank if one for source in (one.a, one.b)]
        dtype = accumulation_dtype(
            [TORCH_DTYPES[source.dtype] for source in (part.base, *part.models, *factors)]
        )
        workspace = Workspace(len(part.models), min(part.elements, self._chunk), dtype, self._device)
        products = [self._product(one, dtype, inputs, readers) if one else None for one in part.low_rank]
        for start, base, models in self._chunks(part, inputs, readers):
            wide_base, task_vectors = workspace.task_vectors(base, models)
            for task_vector, product in zip(task_vectors, products, strict=True):
                if product:
                    product.add_to(task_vector, part.start + start)
            yield start, wide_base, task_vectors

    def _product(
        self, source: LowRankSource, dtype: torch.dtype, inputs: str, readers: _Readers
    ) -> LowRankProduct:
        a, b = (
            self._whole(factor, source.rank * width, inputs, readers).to(dtype)
            for factor, width in ((source.a, source.inputs), (source.b, source.outputs))
        )
        return LowRankProduct(
            a.view(source.rank, source.inputs),
            b.view(source.outputs, source.rank),
            source.scaling,
            source.transposed,
        )

    def _whole(self, source: Source, elements: int, inputs: str, readers: _Readers) -> Tensor:
        """All of a small tensor, resident or read."""
        data = self._resident_slice(source, elements, inputs, readers)
        if data is None:
            nbytes = elements * ITEMSIZE[source.dtype]
            data = readers.read(source, torch.empty(nbytes, dtype=torch.uint8)).to(self._device)
        return data.view(TORCH_DTYPES[source.dtype])

    def _chunks(
        self, part: Slice, inputs: str, readers: _Readers
    ) -> Iterator[tuple[int, Tensor, list[Tensor]]]:
        """Chunks of the base and of every model, as ``(first element in the slice, base, models)``.

        The tensors are valid until the next step.
        """
        sources = (part.base, *part.models)
        kept = [self._resident_slice(source, part.elements, inputs, readers) for source in sources]
        for start in range(0, part.elements, self._chunk):
            count = min(self._chunk, part.elements - start)
            tensors: list[Tensor] = []
            for slot, (source, resident) in enumerate(zip(sources, kept, strict=True)):
                if slot and source == part.base:  # the model has nothing of its own here
                    tensors.append(tensors[0])
                    continue
                size = ITEMSIZE[source.dtype]
                if resident is not None:
                    data = resident[start * size : (start + count) * size]
                else:
                    data = readers.read(source.part(start), self._buffer(slot)[: count * size])
                    data = data.to(self._device)
                # Tensors that are only copied are compared as bytes, whatever their type.
                raw = not part.merged and part.dtype == part.base.dtype
                tensors.append(data if raw else data.view(TORCH_DTYPES[source.dtype]))
            yield start, tensors[0], tensors[1:]

    def _resident_slice(self, source: Source, elements: int, inputs: str, readers: _Readers) -> Tensor | None:
        nbytes = elements * ITEMSIZE[source.dtype]

        def read() -> Tensor:
            return readers.read(source, torch.empty(nbytes, dtype=torch.uint8)).to(self._device)

        return self._resident.get(source, nbytes, inputs, read)

    def _buffer(self, slot: int) -> Tensor:
        while len(self._buffers) <= slot:
            pinned = self._device.type == "cuda"
            self._buffers.append(torch.empty(self._chunk * 8, dtype=torch.uint8, pin_memory=pinned))
        return self._buffers[slot]


class _Readers(ExitStack):
    """The input files of ``slices``, each opened when it is first read, or before if it lies in a store."""

    def __init__(self, findings: Findings, slices: Sequence[Slice], resident: Residency) -> None:
        super().__init__()
        self._findings = findings
        self._open: dict[FileRecord, Reader] = {}
        remote: dict[FileRecord, list[tuple[int, int]]] = {}
        for source, nbytes in (one for part in slices for one in part.reads if one[0].file.state.version):
            if not resident.holds(source, nbytes):
                remote.setdefault(source.file, []).append((source.offset, nbytes))
        for file, ranges in remote.items():
            self._reader(file).prefetch(ranges)

    def read(self, source: Source, buffer: Tensor) -> Tensor:
        """Fill ``buffer`` (bytes) with what lies at ``source``."""
        self._reader(source.file).read_into(buffer.numpy().data, source.offset)
        self._findings.bytes_read += buffer.numel()
        return buffer

    def _reader(self, file: FileRecord) -> Reader:
        if file not in self._open:
            reader: Reader = open_reader(file)
            self._open[file] = reader
            self.callback(reader.close)
        return self._open[file]


def _inner_products(
    task_vectors: Sequence[Tensor], needs: Needs, so_far: NDArray[np.float64]
) -> NDArray[np.float64]:
    # Norms are measured even where nobody asks for them: they are the cheapest test for NaN and inf.
    if needs == "gram":
        return gram_matrix(task_vectors, so_far)
    return np.diag(sums_of_squares(task_vectors, np.diag(so_far)))


def _count_nonfinite(findings: Findings, part: Slice, base: Tensor, task_vectors: Sequence[Tensor]) -> None:
    base_bad = ~torch.isfinite(base)
    counts = {-1: int(base_bad.sum())}
    for index, task_vector in enumerate(task_vectors):
        counts[index] = int((~torch.isfinite(task_vector) & ~base_bad).sum())
    for index, count in counts.items():
        if count:
            place = (index, part.tensor)
            findings.nonfinite[place] = findings.nonfinite.get(place, 0) + count


def _bytes_of(values: Tensor) -> memoryview:
    return values.view(torch.uint8).cpu().numpy().data


def _keep_freed_memory() -> None:
    """Let glibc recycle the chunk-sized temporaries of the rules rather than return each to the system."""
    m_mmap_threshold, m_trim_threshold = -3, -1
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 1 << 25)
        libc.mallopt(m_trim_threshold, 1 << 28)
