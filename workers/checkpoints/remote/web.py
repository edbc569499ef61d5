"""Files of public web servers over HTTPS.

aiohttp on fsspec's event loop: fsspec's own HTTP file system follows redirects, connects to any address and reads
bodies without limit. Here every address is looked at when the socket to it is made, so that no answer of a name
server, first or second, leads into the server's own network.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from fsspec.asyn import get_loop, sync

from workers.checkpoints.names import ADAPTER, ADAPTER_CONFIG, COMPANIONS, STEMS
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import ChangedObject, ObjectStat, Store, TransientError, unreadable

__all__ = ["PrivateAddress", "WebStore"]

Answer = TypeVar("Answer")

TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=10, sock_read=60)
LOOKED_FOR = (
    *(f"{stem}.safetensors{index}" for stem in STEMS for index in ("", ".index.json")),
    f"{ADAPTER}.safetensors",
    f"{ADAPTER}.bin",
    ADAPTER_CONFIG,
    "training.json",
    *(name for name in COMPANIONS if "*" not in name),
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""What a directory is asked for: web servers do not list theirs."""


class PrivateAddress(OSError):
    """The host's address is not public."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "its host has an address that is not public")


class WebStore(Store):
    """Files pinned by their ETags or times of change. Redirects are not followed."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def names(self, directory: RemotePath) -> dict[str, str]:
        async def probe(name: str) -> tuple[str, ObjectStat | None]:
            try:
                return name, await self._stat(directory / name)
            except FileNotFoundError:
                return name, None

        async def all_of_them() -> list[tuple[str, ObjectStat | None]]:
            return await asyncio.gather(*(probe(name) for name in LOOKED_FOR))

        return {name: found.version for name, found in self._run(all_of_them) if found}

    def stat(self, path: RemotePath) -> ObjectStat:
        return self._run(lambda: self._stat(path))

    def read(self, path: RemotePath, version: str, start: int, end: int) -> bytes:
        validator = "If-Match" if version.startswith('"') else "If-Unmodified-Since"
        headers = {"Range": f"bytes={start}-{end - 1}", validator: version}

        async def get() -> bytes:
            async with self._request("GET", path, headers) as response:
                _check_status(response)
                if response.status != 206 or response.content_length != end - start:
                    raise unreadable("the server does not answer with the range that it is asked for")
                if _version(response) != version:
                    raise ChangedObject
                content: bytes = await response.content.readexactly(end - start)
                return content

        return self._run(get)

    async def _stat(self, path: RemotePath) -> ObjectStat:
        async with self._request("HEAD", path, {}) as response:
            _check_status(response)
            version = _version(response)
            if response.content_length is None or not version:
                raise unreadable("the server gives no length, or neither a strong ETag nor a time of change")
            return ObjectStat(response.content_length, version)

    def _request(self, method: str, path: RemotePath, headers: dict[str, str]) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(socket_factory=_public_socket, limit=32),
                timeout=TIMEOUT,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        headers = {"Accept-Encoding": "identity", **headers}
        return self._session.request(method, path.uri, headers=headers, allow_redirects=False)

    def _run(self, work: Callable[[], Awaitable[Answer]]) -> Answer:
        try:
            answer: Answer = sync(get_loop(), work)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddress):
                raise PrivateAddress from error
            raise TransientError("its host cannot be reached") from error
        except (TimeoutError, aiohttp.ClientError, asyncio.IncompleteReadError) as error:
            raise TransientError(f"the connection failed ({type(error).__name__})") from error
        return answer


def _public_socket(address: Any) -> socket.socket:
    """A socket for one address of a host; aiohttp connects it to that very address."""
    family, kind, protocol, _, (host, *_) = address
    place = ipaddress.ip_address(host.partition("%")[0])
    place = getattr(place, "ipv4_mapped", None) or place
    if not (_is_public(place) or (RemotePath.http_to_loopback and place.is_loopback)):
        raise PrivateAddress
    return socket.socket(family, kind, protocol)


def _is_public(place: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    embedded = getattr(place, "sixtofour", None) or (getattr(place, "teredo", None) or (None, None))[1]
    if place in _NAT64:
        embedded = ipaddress.IPv4Address(int(place) & 0xFFFFFFFF)
    if not place.is_global or place.is_multicast or any(place in network for network in _LOCAL):
        return False
    return embedded is None or embedded.is_global


_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL = [ipaddress.ip_network(one) for one in ("fec0::/10", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")]
"""Site-local addresses, NAT64 of a site's own, and IPv4 addresses written as IPv6 in two old ways."""


def _version(response: aiohttp.ClientResponse) -> str:
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, "there is no such file")
    if status in (401, 403):
        raise PermissionError(errno.EACCES, "the server denies it")
    if status in (412, 416):
        raise ChangedObject
    if 300 <= status < 400:
        raise unreadable("the server redirects to another place; name that place itself")
    if status in (408, 429) or status >= 500:
        raise TransientError(f"the server answers {status}")
    if status >= 400:
        raise unreadable(f"the server answers {status}")
