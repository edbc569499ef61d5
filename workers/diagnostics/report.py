"""What a diagnosis leaves to read: pictures, and ``report.html``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from taumerge.schemas import DiagnoseRequest, DiagnoseResult
from workers.aggregation.heterogeneity import mean_cosine
from workers.diagnostics.pictures import (
    AGREEMENT,
    COSINE,
    GRADIENT,
    GRADIENTS,
    LAYERS,
    NORM,
    NORMS,
    WEIGHTS,
    draw,
)
from workers.diagnostics.verdict import mean_agreement, short_names
from workers.reports import Cell, Code, Column, Facts, Notices, Numbers, Picture, Section, Table, page

HTML = "report.html"
UNKNOWN = "unknown"


def write_report(directory: Path, result: DiagnoseResult, request: DiagnoseRequest) -> list[str]:
    """Write the files into ``directory``, which exists; returns their names."""
    pictures = draw(result)
    for name, picture in pictures.items():
        (directory / name).write_bytes(picture.png)
    (directory / HTML).write_text(_page(result, request, pictures))
    return [*pictures, HTML]


def _page(result: DiagnoseResult, request: DiagnoseRequest, pictures: Mapping[str, Picture]) -> str:
    names = short_names([model.uri for model in result.models])
    drawn = {
        "Directions": [COSINE],
        "Signs": [AGREEMENT],
        "Layer by layer": [LAYERS],
        "Gradients at the merged model": [GRADIENTS],
    }
    sections = [
        Section("In numbers", [_numbers(result)]),
        Section("Verdict", [Notices(result.verdict)]),
        *([Section("Warnings", [Notices(result.warnings)])] if result.warnings else []),
        Section("The models", [_models(result, names), pictures[NORMS], pictures[WEIGHTS]]),
        *(
            Section(title, [pictures[name] for name in files])
            for title, files in drawn.items()
            if all(name in pictures for name in files)
        ),
        Section("Every layer group", [_layers(result, names)], folded=True),
        Section("Settings", [Facts(list(_settings(result, request)))]),
        Section("The request", [Code(request.model_dump_json(indent=2, exclude_unset=True))], folded=True),
    ]
    count = len(result.models)
    return page(
        f"How different {count} models are" if count > 1 else "One model and its base",
        f"Task vectors τₜ = θₜ − θ₀ of models of {request.base}, and their average V = Σ pₜ τₜ.",
        sections,
    )


def _numbers(result: DiagnoseResult) -> Numbers:
    cosine, norms = mean_cosine(result.cosine), [model.norm for model in result.models]
    chi_square, gradients = result.chi_square, result.gradients
    items = [
        (
            "χ²(p‖w)",
            UNKNOWN if chi_square is None else f"{chi_square:.3g}",
            "heterogeneity of training; 0 when all train alike",
        ),
        ("‖V‖₂", f"{result.merged_norm:.4g}", f"norms of the models {min(norms):.3g} to {max(norms):.3g}"),
        ("mean cosine", UNKNOWN if cosine is None else f"{cosine:.3f}", "over all pairs of models"),
        ("sign agreement", f"{mean_agreement(result.agreement):.3f}", "mean of |Σ sign τₜ| / T"),
    ]
    if gradients is not None:
        diversity = UNKNOWN if gradients.diversity is None else f"{gradients.diversity:.3f}"
        items += [
            ("ζ*²", f"{gradients.zeta_square:.4g}", "heterogeneity of the data at θ₀ + V"),
            ("gradient diversity", diversity, f"{1 / len(norms):.2f} when all agree, 1 when orthogonal"),
        ]
    return Numbers(items)


def _models(result: DiagnoseResult, names: list[str]) -> Table:
    columns = [
        Column("model"),
        Column(NORM, ".4g"),
        Column("pₜ", ".3f"),
        Column("wₜ", ".3f"),
        Column("share of ‖V‖²", ".3f"),
    ]
    rows: list[list[Cell]] = [
        [name, model.norm, model.weight, model.effective_weight, model.share]
        for name, model in zip(names, result.models, strict=True)
    ]
    if result.gradients is not None:
        columns.append(Column(GRADIENT, ".4g"))
        rows = [[*row, norm] for row, norm in zip(rows, result.gradients.norms, strict=True)]
    return Table(columns, rows, "Norm, weight, effective weight and share of each model.", sortable=True)


def _layers(result: DiagnoseResult, names: list[str]) -> Table:
    rows: list[list[Cell]] = [
        [
            group.name,
            float(group.parameters),
            group.mean_cosine,
            mean_agreement(group.agreement),
            *group.norms,
        ]
        for group in result.groups
    ]
    columns = [
        Column("tensors of"),
        Column("parameters", ",.0f"),
        Column("mean cosine", ".3f"),
        Column("mean |Σ sign| / T", ".3f"),
        *(Column(f"‖τ‖₂ {name}", ".4g") for name in names),
    ]
    caption = "A group is named by what the names of its tensors begin with."
    return Table(columns, rows, caption, sortable=True)


def _settings(result: DiagnoseResult, request: DiagnoseRequest) -> Iterator[tuple[str, str]]:
    yield "base", request.base
    for index, model in enumerate(result.models):
        yield f"model {index}", model.uri
    yield "keys", request.keys
    if request.evaluation:
        yield "evaluation", f"{request.evaluation.kind}: {', '.join(request.evaluation.tasks)}"
    yield "seconds", ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())
