"""Where a sequence of pictures goes: a folder that is filled aside, and gets its name when it is whole.

As `outputs.py` does for one file: prepare refuses early, commit is durable, leaving without a commit removes all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from types import TracebackType

from wan_compat.protocol.errors import (
    DiskExceeded,
    EncodingFailed,
    InvalidRequest,
    OutputExists,
    OutputNotWritable,
)
from wan_compat.supervisor.new_folder import disk_errors, sync_folder, umask
from wan_compat.supervisor.outputs import MIN_FREE_BYTES, CommittedOutput


def prepare_folder(path: str | os.PathLike[str], *, min_free_bytes: int = MIN_FREE_BYTES) -> FolderTarget:
    """Check that a folder of pictures can be written to `path` and make an unfinished one beside it.

    Raises:
        InvalidRequest: Not the name of a folder.
        OutputExists: There is something of that name, other than an empty folder. Nothing that is there is replaced.
        OutputNotWritable: The folder above does not exist or cannot be written.
        DiskExceeded: Too little free space.
    """
    asked = os.fspath(path)
    if not asked or "\0" in asked or os.path.basename(asked.rstrip("/")) in ("", ".", ".."):
        raise InvalidRequest(f"{asked!r} is not the name of a folder")
    final = os.path.abspath(asked)
    parent, name = os.path.split(final)
    if os.path.lexists(final) and (os.path.islink(final) or not os.path.isdir(final) or os.listdir(final)):
        raise OutputExists(f"{asked!r} exists and is not an empty folder", hint="choose another name")
    if not os.path.isdir(parent):
        raise OutputNotWritable(f"{parent!r} is not a folder", hint="create the folder first, or check the path")
    free = os.statvfs(parent)
    if free.f_bavail * free.f_frsize < min_free_bytes:
        raise DiskExceeded(
            f"{parent!r} has {free.f_bavail * free.f_frsize / 1e6:.0f} MB free, and the pictures need at least "
            f"{min_free_bytes / 1e6:.0f} MB",
            hint="free some space or choose another folder",
        )
    part = os.path.join(parent, f".{name[:200]}.{secrets.token_hex(6)}.part")
    with disk_errors(final):
        os.mkdir(part, 0o700)
    return FolderTarget(final, part)


class FolderTarget:
    """A reserved folder, made by `prepare_folder`. Use it as a context manager: it aborts unless committed.

    Attributes:
        path: Final path, absolute.
        part_path: Folder to write into, absolute.
        suffix: Always empty, as a folder's name has none.
    """

    suffix = ""

    def __init__(self, path: str, part_path: str) -> None:
        self.path, self.part_path = path, part_path
        self._open = True

    def commit(self) -> CommittedOutput:
        """Make the pictures durable and give the folder its name; once only.

        Returns:
            The bytes of all files, and the SHA-256 of the lines `SHA256  NAME` of all of them in the order of their
            names, as `sha256sum * | sha256sum` gives it.
        """
        if not self._open:
            raise ValueError("this output was already committed or aborted")
        try:
            with disk_errors(self.path):
                names = sorted(os.listdir(self.part_path))
                if not names:
                    raise EncodingFailed(f"nothing was written to {self.part_path!r}")
                whole, size = hashlib.sha256(), 0
                for name in names:
                    digest, length = _hash_and_sync(os.path.join(self.part_path, name))
                    whole.update(f"{digest}  {name}\n".encode())
                    size += length
                sync_folder(self.part_path)
                os.chmod(self.part_path, 0o777 & ~umask())
                os.rename(self.part_path, self.path)  # replaces an empty folder, fails on any other
                sync_folder(os.path.dirname(self.path))
            return CommittedOutput(sha256=whole.hexdigest(), bytes=size)
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the unfinished folder, if it is still one. Any number of times."""
        if self._open:
            self._open = False
            shutil.rmtree(self.part_path, ignore_errors=True)

    def __enter__(self) -> FolderTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _hash_and_sync(path: str) -> tuple[str, int]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
        return digest.hexdigest(), os.fstat(file.fileno()).st_size
