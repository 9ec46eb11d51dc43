"""A folder that appears whole or not at all.

    .NAME.part-XXXX/     made beside it, filled, synced
    NAME                 one rename, at the end

Whatever ends the writing, nothing half-written stays behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from wan_compat.protocol.errors import InvalidRequest, OutputExists, OutputNotWritable


@contextlib.contextmanager
def new_folder(path: str, *, outside: str) -> Iterator[str]:
    """Yield the absolute path of an unfinished folder; it gets its name when the block ends without an error.

    Args:
        path: A folder that does not exist or is empty; its parent must exist.
        outside: A model that is read meanwhile; the folder may not lie in it.

    Raises:
        OutputExists, InvalidRequest: The name is taken, or lies inside the model.
        OutputNotWritable: It cannot be written there.
    """
    final = os.path.abspath(path)
    refuse_target(final, outside)
    parent = os.path.dirname(final)
    try:
        unfinished = tempfile.mkdtemp(prefix=f".{os.path.basename(final)}.part-", dir=parent)
    except OSError as error:
        raise OutputNotWritable(
            f"{parent!r} cannot be written: {error.strerror}", hint="give a folder that you may write"
        ) from error
    try:
        with disk_errors(final):
            yield unfinished
            os.chmod(unfinished, 0o777 & ~umask())
            os.rename(unfinished, final)  # replaces an empty folder, fails on any other
            sync_folder(parent)
    finally:  # on Ctrl-C too; after the rename there is nothing to remove
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_target(path: str, outside: str) -> None:
    """Raise what `new_folder` would raise for an absolute path, without writing anything."""
    real, root = os.path.realpath(path), os.path.realpath(outside)
    if os.path.commonpath([real, root]) == root:
        raise InvalidRequest(f"{path!r} lies in the model itself", hint="give a folder beside the model")
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path) or os.listdir(path)):
        raise OutputExists(f"{path!r} exists and is not an empty folder", hint="give a new folder")
    if not os.path.isdir(os.path.dirname(path)):
        raise OutputNotWritable(f"{os.path.dirname(path)!r} is not a folder", hint="create it first")


@contextlib.contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Translate what the disk answers while `path` is written."""
    try:
        yield
    except OSError as error:
        raise OutputNotWritable(
            f"{path!r} cannot be written: {error.strerror}", hint="give a folder with room that you may write"
        ) from error


def sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the umask, from /proc: os.umask can only read it by changing it for all threads."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o077)
