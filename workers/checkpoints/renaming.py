"""Renames in one step that plain ``rename`` cannot do: onto nothing only, and two paths for each other."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange", "rename_new"]

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
"""What a kernel or a file system without these renames answers."""

_libc = ctypes.CDLL(None, use_errno=True)


def rename_new(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; ``FileExistsError`` when something is there.

    Where the file system cannot check and rename in one step, only an empty directory that appears
    in between is replaced.
    """
    try:
        _renameat2(source, target, _NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        try:
            source.rename(target)
        except OSError as late:
            if late.errno in {errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from late
            raise


def exchange(source: Path, target: Path) -> None:
    """Let ``source`` and ``target``, which both exist, change places.

    Where the file system cannot do it in one step, ``target`` is missing for a moment; what was
    there is put back when the second rename fails.
    """
    try:
        _renameat2(source, target, _EXCHANGE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        aside = source.with_name(f"{source.name}.aside")
        target.rename(aside)
        try:
            source.rename(target)
        except OSError:
            aside.rename(target)
            raise
        aside.rename(source)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    try:
        function = _libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))
