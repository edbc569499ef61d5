"""Recipes: the body of a request, as a YAML or JSON file."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from taumerge.errors import InvalidRequest

__all__ = ["load_recipe"]


def load_recipe(path: str | PathLike[str]) -> dict[str, Any]:
    """The fields of a recipe: JSON in a ``.json`` file, YAML in any other. They are not validated further.

    Raises:
        InvalidRequest: the file cannot be read, is not a mapping in YAML or JSON, or has a field twice.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
        if Path(path).suffix == ".json":
            recipe = json.loads(text, object_pairs_hook=_distinct)
        else:
            recipe = yaml.load(text, _Loader)
    except OSError as error:
        raise _invalid(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _invalid(f"{path}: is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise _invalid(f"{place}: not YAML: {error.problem}") from None
    except _TwiceError as error:
        raise _invalid(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # odd characters or dates, endless nesting
        raise _invalid(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise _invalid(f"{path}: a recipe is a mapping of fields, such as `base: /models/base`")
    return recipe


class _TwiceError(Exception):
    """A field stands twice, and one of its values would be ignored."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _TwiceError(f"{name!r} stands twice")
        fields[name] = value
    return fields


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        _distinct([(name.value, None) for name, _ in node.value if isinstance(name, yaml.ScalarNode)])
        return node


def _invalid(msg: str) -> InvalidRequest:
    return InvalidRequest.at((), "invalid_recipe", msg)
