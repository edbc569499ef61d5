"""Gradients at the merged model as an actor, beside the shard workers that compute V."""

from __future__ import annotations

from collections.abc import Sequence

from taumerge.errors import JobFailed
from taumerge.schemas import EvaluationSpec, GradientDiagnosis, Progress, Split
from workers.diagnostics.preflight import DiagnosisPlan
from workers.merging.dispatch import Report
from workers.merging.mix import decide
from workers.merging.run import Actors
from workers.merging.sums import Sums
from workers.search.bench import stream
from workers.search.directions import Recipe, Shards
from workers.search.evaluators import EvaluatorActor, Evaluators, gather
from workers.settings import WorkerSettings


class GradientActor(EvaluatorActor):
    """An evaluator that is differentiated instead of scored."""

    def begin(self, tensors: Sequence[str]) -> None:
        """Take gradients in ``tensors`` from here on, at the model as it stands.

        Raises:
            JobFailed: ``overflow``: the merged model is outside the range of its types.
        """
        from workers.diagnostics.gradients import Gradients

        if self._overflowed:
            raise JobFailed(
                "overflow",
                f"θ₀ + V has values outside the range of their type in {len(self._overflowed)} tensors, "
                f"{min(self._overflowed)} first, so there are no gradients there; leave out evaluation",
            )
        self._gradients = Gradients(self._model.evaluator, tensors)

    def gradient(self, task: str, split: Split) -> float:
        """See ``Gradients.add``."""
        return self._gradients.add(task, split)

    def total_square(self) -> float:
        """See ``Gradients.total_square``."""
        return self._gradients.total_square()


def measure_gradients(
    plan: DiagnosisPlan,
    spec: EvaluationSpec,
    tensors: Sequence[str],
    settings: WorkerSettings,
    actors: Actors,
    report: Report,
) -> GradientDiagnosis:
    """ζ*² and gradient diversity at θ* = θ₀ + V, from the split of ``spec`` that decides.

    Args:
        tensors: those in which gradients are taken.

    Raises:
        InvalidRequest, JobFailed: what only the data or the model shows; ``no_gradients``, ``nonfinite``, ``overflow``.
    """
    merge = plan.survey
    progress = Progress(phase="gradients", total=len(spec.tasks), unit="tasks")
    alone = spec.model_copy(update={"evaluators": 1})

    def tick() -> None:
        report(progress)

    with Evaluators(alone, settings, GradientActor) as evaluators:
        [actor] = evaluators.actors
        evaluators.load(merge)
        evaluators.wait(tick)
        average = Recipe.of(merge.rule, decide(merge, Sums()))
        gather(stream(Shards.of(merge, actors), average, 1.0, [actor], tick, report), tick)
        gather([actor.begin.remote(tensors)], tick)
        squares: list[float] = []
        for task in spec.tasks:
            squares += gather([actor.gradient.remote(task, spec.select_on)], tick)
            progress.done += 1
        [total] = gather([actor.total_square.remote()], tick)
    return GradientDiagnosis(
        zeta_square=sum(squares) / len(squares),
        diversity=sum(squares) / total if total > 0 else None,
        norms=[square**0.5 for square in squares],
    )
