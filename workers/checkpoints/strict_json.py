"""JSON objects from files that nobody vouches for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

__all__ = ["parse_object"]


def parse_object(raw: bytes, *, parse_int: Callable[[str], int] = int) -> dict[str, Any]:
    """The object that ``raw`` holds as UTF-8 JSON.

    Raises ``ValueError`` for everything else: bad UTF-8 or JSON, a value that is no object, a key that
    stands twice, an escaped half of a surrogate pair in a key, or nesting too deep to parse.
    """
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_int=parse_int)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"has the key {twice[:200]!a} twice")
    try:
        "".join(entries).encode()
    except UnicodeEncodeError as error:
        raise ValueError("has a key that is not valid Unicode") from error
    return entries
