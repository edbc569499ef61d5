"""Where a file or a directory lies in a remote store. The only parser of such URIs: nothing else reaches a store."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from workers.checkpoints.errors import CheckpointError

__all__ = ["SCHEMES", "WRITABLE", "RemotePath", "is_remote", "parse_remote", "parse_root"]

SCHEMES = ("s3", "gs", "hf", "https")
WRITABLE = ("s3", "gs")
"""Schemes of stores that outputs can be written to."""

_SEGMENT = re.compile(r"[A-Za-z0-9!$&'()+,;=@._~-]+")
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.)){1,61}[a-z0-9]")
_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)*(?::[0-9]{1,5})?")
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.))*")
_HUB_TYPES = {"datasets", "spaces", "models", "buckets", "kernels"}
"""First segments that the hub's file system takes for something else than an owner."""


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A place in a store, with the little of ``pathlib.Path`` that reading a checkpoint needs."""

    http_to_loopback: ClassVar[bool] = False
    """Whether ``http://`` to a loopback address is a place too: of tests, never set by a request."""

    scheme: str
    root: str
    """Bucket, ``owner/repo``, or host with port."""
    key: str
    """What follows, without slashes at its ends; empty for the root itself."""
    revision: str = ""
    """Of ``hf``: a branch, tag or commit; empty for the default branch."""

    @property
    def uri(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}://{self.root}{at}" + (f"/{self.key}" if self.key else "")

    @property
    def listed(self) -> bool:
        """Whether its store tells what lies in a directory."""
        return self.scheme not in ("https", "http")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        stem, dot, suffix = self.name.rpartition(".")
        return dot + suffix if stem else ""

    @property
    def stem(self) -> str:
        return self.name.removesuffix(self.suffix)

    @property
    def parent(self) -> RemotePath:
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def segments(self) -> tuple[str, ...]:
        """Scheme, root and key, piece by piece; a revision is no part of the place."""
        return tuple(part for part in (self.scheme, *self.root.split("/"), *self.key.split("/")) if part)

    def __truediv__(self, name: str) -> RemotePath:
        return replace(self, key=f"{self.key}/{name}" if self.key else name)

    def __str__(self) -> str:
        return self.uri

    def match(self, pattern: str) -> bool:
        """Whether the name matches a shell pattern."""
        return fnmatchcase(self.name, pattern)


def is_remote(uri: str) -> bool:
    """Whether ``uri`` has the form of a remote place, well-formed or not."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme in (*SCHEMES, "http")


def parse_remote(uri: str) -> RemotePath:
    """The place that ``uri`` names: ``s3://bucket/key``, ``gs://bucket/key``, ``hf://owner/repo@revision/key`` or
    ``https://host/key``.

    Raises:
        CheckpointError: ``unsupported_uri`` for every other scheme, and for credentials, queries, fragments, escapes,
            ``..``, chained URLs and whatever else a store could take for more than a name.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "http" and RemotePath.http_to_loopback:
        return _parse_http(rest)
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise _refused(f"its scheme is none of {known} (http:// is not encrypted, so it is none)")
    authority, _, key = rest.partition("/")
    _check_text(authority, key)
    if scheme == "hf":
        return _parse_hub(rest)
    key = key.removesuffix("/")
    path = RemotePath(scheme, authority.lower() if scheme == "https" else authority, key)
    _check(
        _is_host if scheme == "https" else _is_bucket, path.root, "host" if scheme == "https" else "bucket"
    )
    _check_key(key)
    return path


def parse_root(uri: str) -> tuple[str, ...]:
    """The segments of a URI prefix that the operator allows: ``hf://owner`` every model of an owner,
    ``hf://datasets``, ``hf://datasets/owner`` and ``hf://datasets/owner/name`` data sets.

    Raises:
        CheckpointError: as ``parse_remote``.
    """
    names = uri.removeprefix("hf://").removesuffix("/").split("/")
    longest = 3 if names[0] == "datasets" else 0 if names[0] in _HUB_TYPES else 1
    if uri.startswith("hf://") and len(names) <= longest and all(map(_HUB_NAME.fullmatch, names)):
        return ("hf", *names)
    path = parse_remote(uri)
    if path.revision:
        raise _refused("a root names a repository; leave out the revision")
    return path.segments


def _parse_hub(rest: str) -> RemotePath:
    owner, _, after = rest.partition("/")
    repository, _, key = after.removesuffix("/").partition("/")
    name, at, revision = repository.partition("@")
    if owner in _HUB_TYPES or not (_HUB_NAME.fullmatch(owner) and _HUB_NAME.fullmatch(name)):
        raise _refused("a model of the hub is hf://owner/repository, with @revision where one is meant")
    if at and not _REVISION.fullmatch(revision):
        raise _refused("a revision is a commit, or a branch or tag without a slash")
    _check_key(key)
    return RemotePath("hf", f"{owner}/{name}", key, revision)


def _parse_http(rest: str) -> RemotePath:
    host, _, key = rest.partition("/")
    _check_text(host, key)
    try:
        loopback = ipaddress.ip_address(host.partition(":")[0]).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise _refused("http:// is not encrypted; use https://")
    _check_key(key.removesuffix("/"))
    return RemotePath("http", host, key.removesuffix("/"))


def _check_text(authority: str, key: str) -> None:
    text = f"{authority}/{key}"
    if "::" in text:
        raise _refused("chained URLs (::) are not followed")
    if "@" in authority:
        raise _refused("it has a user or password; credentials come from the server's environment")
    if set(text) & set("?#"):
        raise _refused("it has a query or fragment; credentials come from the server's environment")


def _check(valid: Callable[[str], bool], text: str, what: str) -> None:
    if not valid(text):
        raise _refused(f"{text[:100]!a} is no {what}")


def _is_bucket(text: str) -> bool:
    return _BUCKET.fullmatch(text) is not None


def _is_host(text: str) -> bool:
    port = text.partition(":")[2]
    return _HOST.fullmatch(text) is not None and (not port or 0 < int(port) < 65536)


def _check_key(key: str) -> None:
    for segment in key.split("/") if key else ():
        if segment in ("", ".", "..") or not _SEGMENT.fullmatch(segment):
            raise _refused(
                f"the part {segment[:100]!a} cannot be used: letters, digits and !$&'()+,;=@._~- are, without escapes"
            )


def _refused(problem: str) -> CheckpointError:
    return CheckpointError("unsupported_uri", f"This is no location that can be used: {problem}.")
