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
        InvalidRequest: the file cannot be read, or is not a mapping in YAML or JSON.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
        recipe = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # odd characters or dates, endless nesting
        raise _invalid(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise _invalid(f"{path}: a recipe is a mapping of fields, such as `base: /models/base`")
    return recipe


def _invalid(msg: str) -> InvalidRequest:
    return InvalidRequest.at((), "invalid_recipe", msg)
