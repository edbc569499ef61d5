"""Element types by their safetensors names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taumerge.schemas import DType

__all__ = ["FLOATS", "FROM_NAME", "ITEMSIZE", "declared"]

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


def declared(config: bytes, dtype: DType) -> bytes:
    """A ``config.json`` that names ``dtype`` wherever it named a float type, for transformers loads what it names.

    What is no JSON object, or names none, stays as it is.
    """
    try:
        fields = json.loads(config)
    except ValueError:
        return config
    renamed = _renamed(fields, dtype)
    return config if renamed == fields else (json.dumps(renamed, indent=2) + "\n").encode()


def _renamed(fields: Any, dtype: DType) -> Any:
    if isinstance(fields, list):
        return [_renamed(one, dtype) for one in fields]
    if not isinstance(fields, dict):
        return fields
    return {
        name: dtype if name in ("dtype", "torch_dtype") and value in FROM_NAME else _renamed(value, dtype)
        for name, value in fields.items()
    }
