"""The evidence that a search leaves beside the merged checkpoint: tables, pictures and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from taumerge.schemas import BestEvaluation, Scores, SearchRequest, SearchResult
from taumerge.schemas.search import ScalingRange
from workers.aggregation import registered_rules
from workers.reports import (
    Cell,
    Code,
    Column,
    Facts,
    Notices,
    Numbers,
    Picture,
    Section,
    Table,
    page,
)
from workers.search.pictures import Row, score_picture, task_picture

JSON, PARQUET, SCORE, TASKS, HTML = "search.json", "search.parquet", "score.png", "tasks.png", "report.html"
GREEK = {"rho": "ρ"}


def write_report(directory: Path, result: SearchResult, request: SearchRequest, evaluated: int) -> list[str]:
    """Write the files into ``directory``, which exists; returns their names.

    Args:
        evaluated: how many evaluations the result's stand for: rules and ρ with equal V share one.
    """
    (directory / JSON).write_text(result.model_dump_json(indent=2) + "\n")
    pq.write_table(evaluation_table(result), directory / PARQUET)
    pictures = {
        SCORE: _score_picture(result, request),
        TASKS: _task_picture(result, request),
    }
    for name, picture in pictures.items():
        (directory / name).write_bytes(picture.png)
    (directory / HTML).write_text(_page(result, request, evaluated, pictures))
    return [JSON, PARQUET, *pictures, HTML]


def evaluation_table(result: SearchResult) -> pa.Table:
    """A row for each evaluation, with columns as pandas flattens ``search.json``: ``method.name``, ``tasks.mnist``.

    A parameter that a rule has not is null.
    """
    parameters = _parameter_names(result)
    tasks = list(result.best.tasks)
    rows = result.evaluations
    return pa.table(
        {
            "method.name": [one.method["name"] for one in rows],
            **{f"method.{name}": _column([one.method.get(name) for one in rows]) for name in parameters},
            "scaling": pa.array([one.scaling for one in rows], pa.float64()),
            "score": pa.array([one.score for one in rows], pa.float64()),
            "average": pa.array([one.average for one in rows], pa.float64()),
            **{f"tasks.{task}": pa.array([one.tasks[task] for one in rows], pa.float64()) for task in tasks},
            "seconds": pa.array([one.seconds for one in rows], pa.float64()),
        }
    )


def describe(method: Mapping[str, Any]) -> str:
    """The parameters of a rule for a reader: ρ and the scale, and what is not the default."""
    rule = registered_rules().get(method["name"])
    defaults = {name: field.default for name, field in rule.model_fields.items()} if rule else {}
    told = sorted(method.keys() - {"name"}, key=lambda name: (name != "rho", name != "scale", name))
    return ", ".join(
        f"{GREEK.get(name, name)} {_number(method[name])}"
        for name in told
        if name in ("rho", "scale") or method[name] != defaults.get(name)
    )


def _page(
    result: SearchResult, request: SearchRequest, evaluated: int, pictures: Mapping[str, Picture]
) -> str:
    best = result.best
    sections = [
        Section("The best merge", [_numbers(result, request, evaluated)]),
        *([Section("Warnings", [Notices(result.warnings)])] if result.warnings else []),
        Section("The best of each rule", [_ranking(result, request)]),
        Section("Score over λ", [pictures[SCORE]]),
        Section("Task by task", [pictures[TASKS]]),
        Section("Settings", [Facts(list(_settings(result, request)))]),
        Section("The request", [Code(request.model_dump_json(indent=2, exclude_unset=True))], folded=True),
        Section("Every evaluation", [_evaluations(result)]),
    ]
    tasks, count = len(best.tasks), len(result.evaluations)
    return page(
        f"{best.method['name']} is the best of {count:,} merges"
        if count > 1
        else f"A {best.method['name']} merge",
        f"Merged models of {request.base}, fine-tuned on {tasks} {'tasks' if tasks > 1 else 'task'}, scored on "
        f"{request.evaluation.select_on} data relative to the models fine-tuned on each.",
        sections,
    )


def _numbers(result: SearchResult, request: SearchRequest, evaluated: int) -> Numbers:
    best, on = result.best, request.evaluation.select_on
    items = [
        ("rule", best.method["name"], describe(best.method)),
        ("λ", f"{best.scaling:g}", "θ = θ₀ + λ·V"),
        (f"score on {on}", f"{best.score:.4f}", f"average {best.average:.4f}"),
    ]
    if best.test:
        items.append(
            (
                f"score on {request.evaluation.report_on}",
                f"{best.test.score:.4f}",
                f"average {best.test.average:.4f}",
            )
        )
    if zero := result.zero_shot.get(on):
        items.append((f"zero-shot on {on}", f"{zero.score:.4f}", f"average {zero.average:.4f}"))
    ended = "all that was asked for" if result.complete else "ended by the budget"
    merges = len(result.evaluations)
    shared = f"; {evaluated:,} evaluations, as equal merges share one" if evaluated < merges else ""
    items.append(("merges compared", f"{merges:,}", ended + shared))
    return Numbers(items)


def _ranking(result: SearchResult, request: SearchRequest) -> Table:
    on, reported = request.evaluation.select_on, request.evaluation.report_on
    splits = [
        on,
        *([reported] if reported and any(one.test for one in result.best_by_method.values()) else []),
    ]
    ranked = _ranked(result)

    def scores(of: Mapping[str, Scores | None]) -> list[Cell]:
        return [value for split in splits for value in _pair(of.get(split))]

    rows: list[list[Cell]] = [["zero-shot", "", None, *scores(result.zero_shot)]]
    for name, best in ranked.items():
        rows.append(
            [name, describe(best.method), best.scaling, *scores({str(reported): best.test, on: best})]
        )
    rows.append(["individual", "", None, *scores(result.individual)])
    columns = [Column("rule"), Column("parameters"), Column("λ", _scaling_format(result))]
    columns += [Column(f"{split}: {what}", ".4f") for split in splits for what in ("score", "average")]
    return Table(
        columns,
        rows,
        f"The best parameters and λ of each rule by their score on {on}: the mean over tasks of a task's score, "
        "relative to that of the model fine-tuned on it. Zero-shot is the base; individual are the fine-tuned models, "
        "each on its own task. With scale sum, V and with it the step of a λ are T times as long as with mean.",
        marked=frozenset({1}),
        quiet=frozenset({0, len(rows) - 1}),
    )


def _evaluations(result: SearchResult) -> Table:
    tasks = list(result.best.tasks)
    rows: list[list[Cell]] = [
        [
            one.method["name"],
            one.method["rho"] if isinstance(one.method.get("rho"), float) else None,
            describe({name: value for name, value in one.method.items() if name != "rho"}),
            one.scaling,
            one.score,
            one.average,
            *(one.tasks[task] for task in tasks),
            one.seconds,
        ]
        for one in result.evaluations
    ]
    best = next(
        index
        for index, one in enumerate(result.evaluations)
        if one.method == result.best.method and one.scaling == result.best.scaling
    )
    columns = [
        Column("rule"),
        Column("ρ", ".4g"),
        Column("parameters"),
        Column("λ", _scaling_format(result)),
        Column("score", ".4f"),
        Column("average", ".4f"),
        *(Column(task, ".4f") for task in tasks),
        Column("seconds", ".2f"),
    ]
    caption = f"Click a heading to sort. The same stands in {PARQUET} and {JSON}."
    return Table(columns, rows, caption, sortable=True, marked=frozenset({best}))


def _score_picture(result: SearchResult, request: SearchRequest) -> Picture:
    labels = {
        name: f"{name} ({described}): {best.score:.4f} at λ {best.scaling:g}"
        for name, best in _ranked(result).items()
        for described in [describe(best.method)]
    }
    on = request.evaluation.select_on
    zero = result.zero_shot.get(on)
    return Picture(
        score_picture(result, labels, zero.score if zero else None),
        f"Line chart of the average normalised score on {on} over λ. The optima: {'; '.join(labels.values())}.",
        "Bold: the best parameters of each rule, with the optimum marked. Thin: its other parameters. Where scales "
        "differ, so do the λ at which rules take the same step.",
    )


def _task_picture(result: SearchResult, request: SearchRequest) -> Picture:
    on: str = request.evaluation.select_on
    if request.evaluation.report_on and all(one.test for one in result.best_by_method.values()):
        on = request.evaluation.report_on
    rows = [Row("zero-shot", result.zero_shot[on].tasks, result.zero_shot[on].score)]
    for name, best in _ranked(result).items():
        scores = best.test if on == request.evaluation.report_on and best.test else best
        rows.append(Row(f"{name}, λ {best.scaling:g}", scores.tasks, scores.score))
    individual = result.individual[on]
    rows.append(Row("individual", individual.tasks, individual.score))
    lines = (
        f"{row.label}: " + ", ".join(f"{task} {score:.3f}" for task, score in row.tasks.items())
        for row in rows
    )
    return Picture(
        task_picture(rows, individual.tasks),
        f"Heat map of the task scores on {on}. {'. '.join(lines)}.",
        f"Scores on {on} of the best model of each rule, between the base and the fine-tuned models. The colour is the "
        "share of the score of the model fine-tuned on the task.",
    )


def _settings(result: SearchResult, request: SearchRequest) -> Iterator[tuple[str, str]]:
    yield "base", request.base
    for model in request.models:
        weight = "" if model.weight is None else f", weight {model.weight:g}"
        yield f"model for {model.task}", f"{model.uri}{weight}"
    grid = request.scaling
    yield (
        "λ",
        f"{grid.start:g} to {grid.to:g} in steps of {grid.step:g}"
        if isinstance(grid, ScalingRange)
        else ", ".join(f"{value:g}" for value in grid),
    )
    rules = {one.method["name"]: None for one in result.evaluations}
    yield "rules", ", ".join(rules) + (" (the paper's grids)" if request.methods == "paper" else "")
    yield "algorithm", request.algorithm + (f", patience {request.patience}" if request.patience else "")
    limits = {"evaluations": request.budget.evaluations, "minutes": request.budget.minutes}
    if any(limits.values()):
        yield "budget", ", ".join(f"{value:g} {unit}" for unit, value in limits.items() if value)
    if request.algorithm in ("random", "optuna"):
        yield "seed", str(request.seed)
    yield "evaluation", request.evaluation.kind
    yield "output", result.output
    yield "seconds", ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())


def _ranked(result: SearchResult) -> dict[str, BestEvaluation]:
    """The best of each rule, the winner first."""
    winner = result.best.method["name"]
    return dict(sorted(result.best_by_method.items(), key=lambda item: (item[0] != winner, -item[1].score)))


def _pair(scores: Scores | None) -> tuple[float | None, float | None]:
    return (scores.score, scores.average) if scores else (None, None)


def _parameter_names(result: SearchResult) -> list[str]:
    return list(dict.fromkeys(name for one in result.evaluations for name in one.method if name != "name"))


def _column(values: list[Any]) -> pa.Array:
    """An Arrow column; as JSON where rules give a parameter of one name different types."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def _scaling_format(result: SearchResult) -> str:
    """As many decimals as the λ have, up to six."""
    decimals = (len(f"{one.scaling:.6f}".rstrip("0").partition(".")[2]) for one in result.evaluations)
    return f".{max(decimals, default=0)}f"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
