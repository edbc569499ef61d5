"""What requests, jobs and results have in common."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

MAX_MODELS = 256
LARGEST_FACTOR = 1e30
"""Larger factors could not be multiplied with in float32."""

LARGEST_STEPS = 2**53
"""Larger numbers of steps are no float64."""

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""What was measured. In JSON null stands for NaN and infinity, which it does not have."""

DType = Literal["float32", "float16", "bfloat16"]

byte_size = TypeAdapter(ByteSize)


class RequestPart(BaseModel):
    """A part of a request: nothing in it is ignored, and true or false (YAML's yes, no, on, off) is no number."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError(
                "bool_type", "neither true nor false (in YAML also yes, no, on, off) is a number"
            )
        return value


class AnswerPart(BaseModel):
    """A part of an answer: a newer service may send fields that an older client does not know."""

    model_config = ConfigDict(extra="ignore")


class Progress(AnswerPart):
    """How far a running job is."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = "bytes"
    eta_seconds: float | None = None
    """Estimated from the pace of this phase so far; null until there is one."""
    metrics: dict[str, Number] = Field(default_factory=dict)
    """Of a fine-tune: ``loss``, ``learning_rate`` and ``images_per_second`` or ``tokens_per_second``, as of now."""


class JobError(AnswerPart):
    """Why a job failed."""

    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class OutputFile(AnswerPart):
    """One file of a merged checkpoint."""

    name: str
    bytes: int
    sha256: str
