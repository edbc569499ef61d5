"""What a search drives: a model whose parameters are replaced in place, and the data that it is scored on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Protocol

from taumerge.errors import InvalidRequest
from taumerge.schemas import EvaluationSpec, Split

if TYPE_CHECKING:
    from torch import Tensor

    from workers.hardware import Hardware

BUILT_IN = ("clip", "classification", "lm_eval")
GROUP = "taumerge.evaluators"
"""Entry points of this group are kinds that a deployment adds: name → callable like ``build_evaluator``, with the
first four arguments."""

Location = tuple[str | int, ...]


class Evaluator(Protocol):
    """A model whose parameters can be replaced in place, and the data to score it on."""

    parameters: Mapping[str, Tensor]
    """The model's tensors under the names that they have in the base checkpoint: all float tensors of the checkpoint,
    each once. Writing into them changes the model. On the device of the hardware; perhaps of another type than
    stored. A tensor that the architecture knowingly ignores is there too, and changes nothing."""

    def evaluate(self, task: str, split: Split) -> float:
        """The score of ``task``, usually an accuracy in [0, 1]; the same for the same parameters."""
        ...

    def losses(self, task: str, split: Split) -> Iterator[tuple[Tensor, int]]:
        """The mean loss of each batch, a scalar, and its number of terms.

        It can be differentiated by those of ``parameters`` that are an ``nn.Parameter`` and ask for gradients: none
        do, until somebody sets it.

        Raises:
            JobFailed: ``no_gradients``: these scores have no gradient.
        """
        ...


def build_evaluator(
    base: str,
    spec: EvaluationSpec,
    tasks: Sequence[str],
    hardware: Hardware,
    *,
    code_allowed: bool = False,
) -> Evaluator:
    """Load the architecture and the data of ``tasks``, once for all evaluations.

    Args:
        base: URI of the base checkpoint.
        tasks: keys of ``spec.tasks``; the others are somebody else's.
        code_allowed: whether tasks may run code that models write, and code beside a task's YAML.

    Raises:
        InvalidRequest: located in a request that holds ``spec`` as ``evaluation``: whatever is wrong with the data,
            or ``architecture_mismatch``, with the names of tensors that the checkpoint or the architecture lacks.
    """
    if spec.kind == "clip":
        from workers.evaluation.clip import build_clip_evaluator

        return build_clip_evaluator(base, spec, tasks, hardware)
    if spec.kind == "classification":
        from workers.evaluation.classification import build_classification_evaluator

        return build_classification_evaluator(base, spec, tasks, hardware)
    if spec.kind == "lm_eval":
        from workers.evaluation.harness import build_harness_evaluator

        return build_harness_evaluator(base, spec, tasks, hardware, code_allowed=code_allowed)
    entry = added_kinds().get(spec.kind)
    if entry is None:
        raise InvalidRequest.at(("evaluation", "kind"), "unknown_evaluator", unknown_kind(spec.kind))
    build: Callable[..., Evaluator] = entry.load()
    return build(base, spec, tasks, hardware)


def added_kinds() -> dict[str, EntryPoint]:
    """The kinds that installed packages add, by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN}


def unknown_kind(kind: str) -> str:
    """Why ``kind`` is refused."""
    known = ", ".join((*BUILT_IN, *sorted(added_kinds())))
    return f"there is no evaluator {kind!r}, only {known}; the service's operator can install others"
