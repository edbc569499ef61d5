"""Client SDK of taumerge, the model-merging service."""

from importlib.metadata import version

from taumerge._events import Event, LogEvent, ProgressEvent, StateEvent
from taumerge.client import AsyncClient, Client
from taumerge.errors import (
    ApiError,
    Conflict,
    ErrorItem,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    ServiceUnreachable,
    TaumergeError,
    Unauthorized,
    Unavailable,
    WaitTimeout,
)
from taumerge.recipe import load_recipe
from taumerge.schemas import (
    FinetuneRequest,
    FinetuneResult,
    Job,
    JobError,
    MergeRequest,
    MergeResult,
    MethodInfo,
    MethodSpec,
    ModelRef,
    ModelReport,
    Plan,
    Progress,
    Training,
    TrialResult,
)

__version__ = version("taumerge")

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Conflict",
    "ErrorItem",
    "Event",
    "FinetuneRequest",
    "FinetuneResult",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "LogEvent",
    "MergeRequest",
    "MergeResult",
    "MethodInfo",
    "MethodSpec",
    "ModelRef",
    "ModelReport",
    "NotFound",
    "Plan",
    "Progress",
    "ProgressEvent",
    "ServiceUnreachable",
    "StateEvent",
    "TaumergeError",
    "Training",
    "TrialResult",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
    "__version__",
    "load_recipe",
]
