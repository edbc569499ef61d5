"""``hf://datasets/OWNER/NAME[@REVISION]``: data sets of the Hugging Face hub. No library: the API reads it too."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "hf://datasets/"

_ADDRESS = re.compile(r"hf://datasets/([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?")


@dataclass(frozen=True)
class HubAddress:
    """A data set repository of the hub."""

    repository: str
    """``OWNER/NAME``."""
    revision: str | None = None
    """Branch, tag or commit; None is the newest commit of the main branch."""


def is_hub(uri: str | None) -> bool:
    """Whether ``uri`` names a data set of the hub, well or badly."""
    return uri is not None and uri.startswith(SCHEME)


def hub_address(uri: str) -> HubAddress:
    """What ``uri`` names; raises ``ValueError`` for what is no address."""
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise ValueError(f"write {SCHEME}OWNER/NAME, perhaps with @REVISION")
    return HubAddress(match[1], match[2])
