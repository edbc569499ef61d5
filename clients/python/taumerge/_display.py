"""What the command prints for people: plain tables that also read well in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from taumerge.schemas import (
    DiagnoseResult,
    Evaluation,
    FinetuneResult,
    Job,
    MergeResult,
    MethodInfo,
    Plan,
    Progress,
    Scores,
    SearchResult,
    TrialResult,
)


def new_console() -> Console:
    """A console on stdout that takes text as it is (a URI may hold brackets) and never cuts a table in a pipe."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def show_jobs(console: Console, jobs: Sequence[Job]) -> None:
    rows = [
        (
            job.id,
            job.state,
            _share(job.progress) if job.state == "running" else "",
            _time(job.created_at),
            str(job.request.get("output") or ""),
        )
        for job in jobs
    ]
    _table(console, ("id", "state", "progress", "created", "output"), rows)


def show_job(console: Console, job: Job) -> None:
    facts = [
        ("job", job.id),
        ("state", f"{job.state} {_share(job.progress)}" if job.state == "running" else job.state),
        ("created", _time(job.created_at)),
    ]
    if job.started_at and job.finished_at:
        facts.append(("ran for", f"{(job.finished_at - job.started_at).total_seconds():.1f} s"))
    if job.attempt > 1:
        facts.append(("attempts", str(job.attempt)))
    if job.error:
        facts.append(("error", f"{job.error.message} ({job.error.code})"))
    match job.result:
        case None:
            _facts(console, [*facts, ("output", str(job.request.get("output") or ""))])
        case FinetuneResult() as result:
            _facts(console, [*facts, ("output", result.output), *_warnings(result.warnings)])
            _show_trials(console, result.trials)
        case SearchResult() as result:
            _facts(console, [*facts, *_search_facts(result)])
            _show_scores(console, result)
        case DiagnoseResult() as result:
            _facts(console, [*facts, *_diagnosis_facts(result)])
            _show_models(console, result)
        case MergeResult() as result:
            _facts(console, [*facts, *_merge_facts(result)])
            _show_merge(console, result)


def show_plan(console: Console, plan: Plan) -> None:
    facts = [
        ("tensors", f"{plan.tensors:,}"),
        ("parameters", f"{plan.parameters:,}"),
        ("reads", decimal(plan.input_bytes)),
        ("writes", decimal(plan.output_bytes)),
        ("workers", str(plan.workers)),
        ("memory of a worker", decimal(plan.peak_memory_bytes)),
    ]
    _facts(console, [*facts, *_warnings(plan.warnings)])
    _table(console, ("worker", "reads"), [(str(shard.worker), decimal(shard.bytes)) for shard in plan.shards])


def show_methods(console: Console, methods: Sequence[MethodInfo]) -> None:
    _table(
        console,
        ("method", "parameters", "summary"),
        [(method.name, _parameters(method), method.summary) for method in methods],
    )


def _merge_facts(result: MergeResult) -> Iterable[tuple[str, str]]:
    counts = result.tensors
    yield "output", result.output
    yield "tensors", f"{counts.merged:,} merged, {counts.copied:,} copied, {counts.dropped:,} dropped"
    yield "λ", f"{result.scaling:g}"
    yield "‖V‖₂", _number(result.merged_norm)
    yield "read", decimal(result.bytes_read)
    yield "written", decimal(result.bytes_written)
    yield "seconds", ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in result.seconds.items())
    yield from _warnings(result.warnings)


def _show_merge(console: Console, result: MergeResult) -> None:
    _table(
        console,
        ("model", "norm", "weight", "coefficient", "clipped by", "non-finite"),
        [
            (
                model.uri + (" (dropped)" if model.dropped else ""),
                *(
                    _number(value)
                    for value in (model.norm, model.weight, model.coefficient, model.clipped_by)
                ),
                str(model.nonfinite),
            )
            for model in result.models
        ],
    )
    _table(
        console,
        ("file", "size", "sha256"),
        [(file.name, decimal(file.bytes), file.sha256) for file in result.files],
    )


def _search_facts(result: SearchResult) -> Iterable[tuple[str, str]]:
    yield "output", result.output
    yield "best", f"{_method(result.best)}, λ {result.best.scaling:g}, score {result.best.score:.4f}"
    ended = "" if result.complete else ", ended by the budget"
    yield "evaluations", f"{len(result.evaluations):,}{ended}"
    yield from _warnings(result.warnings)


def _show_scores(console: Console, result: SearchResult) -> None:
    """The best of each rule between the individual models and the base, on the split that decided and on the other."""
    tasks = list(result.best.tasks)
    rows: list[tuple[str, str, str, Scores]] = []
    for name, references in (("individual", result.individual), ("zero-shot", result.zero_shot)):
        rows += [(name, "", split, scores) for split, scores in references.items()]
    for best in sorted(result.best_by_method.values(), key=lambda one: -one.score):
        rows.append((_method(best), f"{best.scaling:g}", "selected on", best))
        if best.test is not None:
            rows.append(("", "", "reported on", best.test))
    _table(
        console,
        ("model", "λ", "split", "score", "average", *tasks),
        [
            (
                name,
                scaling,
                split,
                *(f"{value:.4f}" for value in (scores.score, scores.average, *scores.tasks.values())),
            )
            for name, scaling, split, scores in rows
        ],
    )


def _method(evaluation: Evaluation) -> str:
    """``fedgma, scale sum, rho 0.5``: the rule and its parameters."""
    parameters = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in evaluation.method.items()
        if name != "name"
    ]
    return ", ".join([evaluation.method["name"], *parameters])


def _diagnosis_facts(result: DiagnoseResult) -> Iterable[tuple[str, str]]:
    if result.output:
        yield "output", result.output
    yield "‖V‖₂", _number(result.merged_norm)
    if result.chi_square is not None:
        yield "χ²(p‖w)", _number(result.chi_square)
    if result.gradients is not None:
        yield "ζ*²", _number(result.gradients.zeta_square)
    yield from (("verdict", line) for line in result.verdict)
    yield from _warnings(result.warnings)


def _show_models(console: Console, result: DiagnoseResult) -> None:
    numbers = range(len(result.models))
    _table(
        console,
        ("", "model", "norm", "p", "w", "share of ‖V‖²", *(f"cos {number}" for number in numbers)),
        [
            (
                str(number),
                model.uri,
                *(_number(x) for x in (model.norm, model.weight, model.effective_weight, model.share)),
                *("" if cosine is None else f"{cosine:.3f}" for cosine in result.cosine[number]),
            )
            for number, model in enumerate(result.models)
        ],
    )


def _show_trials(console: Console, trials: Sequence[TrialResult]) -> None:
    _table(
        console,
        ("learning rate", "steps", "loss", "validation", "output or error"),
        [
            (
                f"{trial.learning_rate:g}",
                f"{trial.steps:,}",
                _number(trial.loss),
                ", ".join(f"{name} {value:.4g}" for name, value in trial.validation.items()),
                f"{trial.error.message} ({trial.error.code})" if trial.error else trial.output,
            )
            for trial in trials
        ],
    )


def _warnings(warnings: Sequence[str]) -> Iterable[tuple[str, str]]:
    return (("warning", warning) for warning in warnings)


def _parameters(method: MethodInfo) -> str:
    names = method.parameters.get("properties", {})
    return ", ".join(
        f"{name}={method.defaults[name]}" if name in method.defaults else f"{name}" for name in names
    )


def _facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    grid = Table.grid(padding=(0, 2))
    for fact in facts:
        grid.add_row(*fact)
    console.print(grid)


def _table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _share(progress: Progress | None) -> str:
    if progress is None:
        return ""
    return f"{progress.phase} {progress.done / progress.total:.0%}" if progress.total else progress.phase


def _time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
