"""Element types by their safetensors names."""

from __future__ import annotations

from collections.abc import Mapping

from taumerge.schemas import DType

__all__ = ["FLOATS", "FROM_NAME", "ITEMSIZE"]

ITEMSIZE: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of one element. The types of less than a byte (F4, F6) are not among them."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What a merge does arithmetic on; tensors of any other type are copied from the base."""

FROM_NAME: Mapping[DType, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""From the contract's names to those of safetensors."""
