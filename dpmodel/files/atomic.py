"""Write a file completely or not at all.

The content goes to a temporary name in the same folder, is flushed to the disk and takes the final name in one
step, so that a reader, a crash, a full disk or a kill never meets half a file::

    atomic_write("model.dp", lambda temporary: temporary.write_bytes(image))
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["atomic_symlink", "atomic_write", "remove_leftovers"]


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Create or replace `path` by what `write(temporary)` writes to the path that it is given.

    A symbolic link at `path` is replaced, not followed. Raises OSError naming `path` when the file cannot be written
    (a full disk, a missing folder); whatever `write` raises otherwise passes through. In each of these cases the
    temporary file is gone and a previous file is as it was.
    """
    path = Path(path)
    try:
        _refuse_odd_targets(path)
        temporary = _temporary(path)
        try:
            write(temporary)
            _sync(temporary, os.O_RDWR)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error


def atomic_symlink(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Let `path` be a relative symbolic link to the existing file `target`, or a copy where links are impossible.

    Raises OSError naming `path` when neither can be made; a previous link or file is then as it was.
    """
    path, target = Path(path), Path(target)
    temporary = _temporary(path)
    try:
        _refuse_odd_targets(path)
        temporary.symlink_to(os.path.relpath(target, path.parent))
    except (OSError, NotImplementedError):
        # Windows without the privilege, FAT and some network file systems have no symbolic links.
        atomic_write(path, lambda copy: shutil.copyfile(target, copy))
        return
    try:
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _explained(error, path) from error


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the temporary files that killed writers left in `folder` for files whose name matches the regex `name`.

    For names that only one process writes: another one's file in progress looks the same. Failures are ignored.
    """
    pattern = re.compile(rf"\.{name}\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if pattern.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _refuse_odd_targets(path: Path) -> None:
    """Replacing would turn a device such as /dev/null into a plain file."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; give the name of a file", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is neither a plain file nor a new name", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}; create it first", str(path))


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable too, where the system can: not on Windows, nor on some network file systems."""
    # The file is whole under its name by now; without this a power cut may bring back the previous one.
    with contextlib.suppress(OSError):
        _sync(folder, os.O_RDONLY)


def _explained(error: OSError, path: Path) -> OSError:
    what = f"cannot write {path}: {error.strerror or error}. A previous file of that name is unchanged"
    return OSError(error.errno, what) if error.errno is not None else OSError(what)
