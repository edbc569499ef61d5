"""YAML files that describe tasks of lm-evaluation-harness, read so that a request's file can run no code.

In the harness such a file may import Python (``!function``), name metrics that are downloaded and run, hand arguments
to ``generate`` that do the same, and read whatever file it likes. Here it may hold what is listed below, and read what
lies beside it or below. An operator who allows code lets the harness read the file itself.

Nothing here needs torch or the harness: the API checks files too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from taumerge.errors import TaumergeError

__all__ = ["TaskFileError", "read_task_file"]

LARGEST = 1_000_000
"""Bytes of a task file."""

FIELDS = frozenset(
    [
        "task",
        "task_alias",
        "tag",
        "include",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "fewshot_config",
        "num_fewshot",
        "metric_list",
        "output_type",
        "generation_kwargs",
        "repeats",
        "filter_list",
        "gen_prefix",
        "metadata",
        "should_decontaminate",
        "doc_to_decontamination_query",
        "unsafe_code",
    ]
)
GENERATION = frozenset(
    [
        "until",
        "max_gen_toks",
        "max_new_tokens",
        "max_tokens",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "num_beams",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "length_penalty",
        "early_stopping",
    ]
)
METRICS = frozenset(
    [
        "acc",
        "acc_norm",
        "acc_bytes",
        "acc_mutual_info",
        "acc_all",
        "exact_match",
        "brier_score",
        "likelihood",
        "f1",
        "mcc",
        "bleu",
        "chrf",
        "ter",
        "perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "bypass",
    ]
)
"""Metrics that are in the harness itself."""
READERS = frozenset(["json", "csv", "parquet", "text", "arrow"])
"""What reads local files."""
READER_OPTIONS = frozenset(["data_files", "field", "delimiter", "column_names"])
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class TaskFileError(TaumergeError):
    """A task file cannot be used: ``malformed_task``, or ``unsafe_task`` where only the operator can allow it."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


def read_task_file(path: Path) -> dict[str, Any]:
    """The fields of a task, with those of included files, and local data files as absolute paths.

    Raises:
        TaskFileError
    """
    path = path.resolve()
    fields = _read(path, path.parent, ())
    for field in ("task", "dataset_path"):
        if not isinstance(fields.get(field), str):
            raise _malformed(path, f"has no text in the field {field}; one file describes one task")
    if not fields.get("test_split") and not fields.get("validation_split"):
        raise _malformed(path, "has neither test_split nor validation_split, so there is nothing to evaluate")
    return fields


class _Loader(yaml.SafeLoader):
    """Plain data only."""


def _refuse_function(loader: _Loader, node: yaml.Node) -> None:
    raise _unsafe(f"line {node.start_mark.line + 1} imports Python (!function)")


_Loader.add_constructor("!function", _refuse_function)


def _read(path: Path, root: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """The fields of one file over those that it includes; all within ``root``."""
    if path in including:
        raise _malformed(path, "includes itself")
    fields = _parse(path)
    _check_fields(path, fields)
    if "dataset_kwargs" in fields:
        fields["dataset_kwargs"] = _placed(path, root, fields["dataset_kwargs"])
    merged: dict[str, Any] = {}
    for name in _several(fields.pop("include", [])):
        merged |= _read(_inside(path, root, name), root, (*including, path))
    fields = merged | fields
    _check_source(path, fields)
    return fields


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise _malformed(path, f"cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST:
        raise _malformed(path, f"is larger than {LARGEST} bytes")
    try:
        fields = yaml.load(raw, Loader=_Loader)  # it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _malformed(path, f"is no YAML that can be read: {error}") from None
    if not isinstance(fields, dict):
        raise _malformed(path, "holds no fields")
    return fields


def _check_fields(path: Path, fields: dict[str, Any]) -> None:
    _check_keys(path, "field", fields, FIELDS)
    if fields.get("unsafe_code"):
        raise _unsafe(f"{path.name} describes a task that runs code of models (unsafe_code)")
    generation = fields.get("generation_kwargs") or {}
    if not isinstance(generation, dict):
        raise _malformed(path, "has generation_kwargs that are no mapping")
    _check_keys(path, "generation argument", generation, GENERATION)
    for metric in _several(fields.get("metric_list") or []):
        if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str):
            raise _malformed(path, "has an entry in metric_list without the name of a metric")
        if metric["metric"] not in METRICS or metric.get("hf_evaluate"):
            known = ", ".join(sorted(METRICS))
            raise _unsafe(f"{path.name} names the metric {metric['metric']!r}, which is none of {known}")


def _check_source(path: Path, fields: dict[str, Any]) -> None:
    """``dataset_path`` is a reader of local files with its options, or a data set of the Hub."""
    source, options = fields.get("dataset_path"), fields.get("dataset_kwargs") or {}
    if source in READERS:
        _check_keys(path, "option in dataset_kwargs", options, READER_OPTIONS)
        return
    if source is None:
        return
    if not isinstance(source, str) or not _HUB_NAME.fullmatch(source) or Path(source).exists():
        readers = ", ".join(sorted(READERS))
        raise _unsafe(
            f"{path.name} reads {str(source)[:100]!r}: dataset_path is one of {readers}, or OWNER/NAME on the Hub"
        )
    _check_keys(path, "option in dataset_kwargs", options, frozenset({"revision"}))


def _placed(path: Path, root: Path, options: Any) -> dict[str, Any]:
    """``dataset_kwargs`` with absolute paths of files below ``root``."""
    if not isinstance(options, dict):
        raise _malformed(path, "has dataset_kwargs that are no mapping")
    if "data_files" not in options:
        return options

    def place(name: Any) -> str:
        return str(_inside(path, root, name))

    return options | {"data_files": _mapped(place, options["data_files"])}


def _mapped(place: Callable[[Any], str], files: Any) -> Any:
    """``data_files`` is a name, several, or either of them by split."""
    if isinstance(files, dict):
        return {str(split): _mapped(place, names) for split, names in files.items()}
    if isinstance(files, list):
        return [place(name) for name in files]
    return place(files)


def _inside(path: Path, root: Path, name: Any) -> Path:
    """The file ``name`` that the task file ``path`` names: a plain name that is found below ``root``."""
    if not isinstance(name, str) or not name:
        raise _malformed(path, f"has {str(name)[:100]!r} where the name of a file should stand")
    if (
        "::" in name or "://" in name or set(name) & set("*?[]")
    ):  # what fsspec and glob take for more than a name
        raise _unsafe(f"{path.name} reads {name[:100]!r}, which is no plain name of a local file")
    file = (path.parent / name).resolve()
    if not file.is_relative_to(root):
        raise _unsafe(f"{path.name} reads {name[:100]!r}, which is not beside the task file or below")
    if not file.is_file():
        raise _malformed(path, f"reads {name[:100]!r}, and there is no such file")
    return file


def _check_keys(path: Path, what: str, fields: dict[Any, Any], known: frozenset[str]) -> None:
    if unknown := sorted(str(key) for key in fields if key not in known):
        raise _unsafe(
            f"{path.name} has the {what} {unknown[0][:100]!r}, which is none of {', '.join(sorted(known))}"
        )


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _malformed(path: Path, problem: str) -> TaskFileError:
    return TaskFileError("malformed_task", f"{path.name} {problem}")


def _unsafe(problem: str) -> TaskFileError:
    return TaskFileError(
        "unsafe_task",
        f"{problem}; such tasks run only where the service's operator sets TAUMERGE_ALLOW_CODE_EXECUTION",
    )
