"""Where a video goes: checked before anything heavy starts, written aside, and given its name only when whole.

    prepare_output   refuses early what would fail late; makes  NAME.RANDOM.part  (0600) in the output's folder
    commit           fsync, hash, rename, fsync of the folder: afterwards the video is there, whole and durable
    abort            removes the part; also what leaving the `with` block without a commit does

No file is lost: without `overwrite` a file that appeared meanwhile stays, and so does the video; commit says where.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from wan_compat.policies.encoding import format_for
from wan_compat.protocol.errors import (
    DiskExceeded,
    EncodingFailed,
    InvalidRequest,
    OutputExists,
    OutputNotWritable,
    WanCompatError,
)

MIN_FREE_BYTES = 64 << 20

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RENAME_NOREPLACE = 1
# What a kernel, a file system or a seccomp filter answers that does not know the flag.
_FLAG_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class CommittedOutput(NamedTuple):
    """A file that is whole, durable and has its name."""

    sha256: str
    bytes: int


def prepare_output(
    path: str | os.PathLike[str], overwrite: bool = False, *, min_free_bytes: int = MIN_FREE_BYTES
) -> OutputTarget:
    """Check that a video can be written to `path` and reserve a part file beside it.

    A symbolic link as the last component is followed if it leads to a regular file: with `overwrite` that file is
    replaced and the link stays. Other links are refused, since what they would create or feed cannot be foreseen.

    Args:
        path: File to write; its suffix chooses the format.
        overwrite: Replace a regular file of that name.
        min_free_bytes: Least free space in the folder's file system.

    Raises:
        InvalidRequest: Unknown suffix, a folder, a device, a dangling link, a name that is too long.
        OutputExists: The file exists and `overwrite` is false.
        OutputNotWritable: The folder does not exist or cannot be written.
        DiskExceeded: Too little free space.
    """
    format_for(os.path.splitext(_file_name(path))[1])
    return prepare_document(path, overwrite, min_free_bytes=min_free_bytes)


def prepare_document(
    path: str | os.PathLike[str], overwrite: bool = False, *, min_free_bytes: int = 1 << 20
) -> OutputTarget:
    """Check and reserve as `prepare_output` does, for a file with any suffix, such as a report."""
    asked = _file_name(path)
    with _understood(asked):
        final, existing = _resolve(asked, overwrite)
    folder, name = os.path.split(final)
    # An existing file's mode is kept: a video that was private does not become public by being made again.
    mode = 0o666 & ~_umask() if existing is None else stat.S_IMODE(existing.st_mode) & 0o777
    with _understood(asked), contextlib.ExitStack() as stack:
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder_fd)
        free = os.fstatvfs(folder_fd)
        free_bytes = free.f_bavail * free.f_frsize
        if free_bytes < min_free_bytes:
            raise DiskExceeded(
                f"{folder!r} has {free_bytes / 1e6:.0f} MB free, and the file needs at least "
                f"{min_free_bytes / 1e6:.0f} MB",
                hint="free some space or choose another folder",
            )
        # A name that fits must not fail for our ending, so the part's name is cut to make room for it.
        ending = f".{secrets.token_hex(6)}.part"
        longest = os.pathconf(folder, "PC_NAME_MAX")
        if len(os.fsencode(name)) > longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        part_name = os.fsencode(name)[: longest - len(ending)].decode("utf-8", "ignore") + ending
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        part_fd = os.open(part_name, flags, 0o600, dir_fd=folder_fd)
        stack.pop_all()
    return OutputTarget(folder_fd, part_fd, folder, name, part_name, mode, overwrite)


class OutputTarget:
    """A reserved output, made by `prepare_output`. Use it as a context manager: it aborts unless committed.

    Attributes:
        path: Final path, absolute, links resolved.
        part_path: File to write into, absolute. It exists; it must be opened, not replaced.
        suffix: The output's suffix, lower case.
    """

    def __init__(
        self, folder_fd: int, part_fd: int, folder: str, name: str, part_name: str, mode: int, overwrite: bool
    ) -> None:
        self.path = os.path.join(folder, name)
        self.part_path = os.path.join(folder, part_name)
        self.suffix = os.path.splitext(name)[1].lower()
        self._name = name
        self._part_name = part_name
        self._mode = mode
        self._overwrite = overwrite
        self._folder_fd: int | None = folder_fd
        self._part_fd: int | None = part_fd

    def commit(self) -> CommittedOutput:
        """Make the part durable and give it its name. Blocks for as long as the disk needs; once only.

        Raises:
            OutputExists: A file of that name appeared meanwhile. Both are kept; `details["kept"]` is ours.
            EncodingFailed: Nothing was written.
            OutputNotWritable, DiskExceeded: The file system refused.
        """
        if self._part_fd is None or self._folder_fd is None:
            raise ValueError("this output was already committed or aborted")
        try:
            with _understood(self.path):
                ours = os.fstat(self._part_fd)
                named = os.stat(self._part_name, dir_fd=self._folder_fd, follow_symlinks=False)
                if (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino):
                    raise OutputNotWritable(f"{self.part_path!r} was replaced by something else while it was written")
                if ours.st_size == 0:
                    raise EncodingFailed(f"nothing was written to {self.part_path!r}")
                sha256 = _sha256(self._part_fd)
                os.fchmod(self._part_fd, self._mode)
                os.fsync(self._part_fd)
                self._give_name(self._folder_fd)
                _sync_folder(self._folder_fd)
            return CommittedOutput(sha256=sha256, bytes=ours.st_size)
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the part, if it is still one. Any number of times."""
        folder_fd, part_fd = self._folder_fd, self._part_fd
        self._folder_fd = self._part_fd = None
        if folder_fd is not None:
            with contextlib.suppress(OSError):  # gone already, or the folder is
                os.unlink(self._part_name, dir_fd=folder_fd)
            os.close(folder_fd)
        if part_fd is not None:
            os.close(part_fd)

    def __enter__(self) -> OutputTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _give_name(self, folder_fd: int) -> None:
        try:
            if self._overwrite:
                os.rename(self._part_name, self._name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            else:
                _rename_without_replacing(folder_fd, self._part_name, self._name)
        except (FileExistsError, IsADirectoryError) as error:
            # Hours of work may be in this file, so it is kept under a name that nobody else has.
            stem, suffix = os.path.splitext(self._part_name.removesuffix(".part"))
            kept = f"{os.path.splitext(stem)[0]}{suffix}{self.suffix}"
            _rename_without_replacing(folder_fd, self._part_name, kept)
            _sync_folder(folder_fd)
            kept_path = os.path.join(os.path.dirname(self.path), kept)
            raise OutputExists(
                f"{self.path!r} was made by somebody else meanwhile; the finished video is {kept_path!r}",
                details={"kept": kept_path},
            ) from error


def _file_name(path: str | os.PathLike[str]) -> str:
    asked = os.fspath(path)
    if not asked or "\0" in asked or os.path.basename(asked) in ("", ".", ".."):
        raise InvalidRequest(f"{asked!r} is not the name of a file")
    return asked


def _resolve(asked: str, overwrite: bool) -> tuple[str, os.stat_result | None]:
    """Return the absolute path to write, with links resolved, and the status of the file that is there, if any."""
    folder = os.path.realpath(os.path.dirname(asked) or ".", strict=True)
    final = os.path.join(folder, os.path.basename(asked))
    try:
        existing = os.lstat(final)
    except FileNotFoundError:
        return final, None
    if stat.S_ISLNK(existing.st_mode):
        try:
            final = os.path.realpath(final, strict=True)
        except OSError as error:
            raise InvalidRequest(
                f"{asked!r} is a link that leads nowhere: {error.strerror}", hint="name the file itself"
            ) from error
        existing = os.lstat(final)
    if stat.S_ISDIR(existing.st_mode):
        raise InvalidRequest(f"{asked!r} is a folder", hint="name a file in it")
    if not stat.S_ISREG(existing.st_mode):
        raise InvalidRequest(f"{asked!r} is not a regular file")
    if not overwrite:
        raise OutputExists(f"{asked!r} exists", hint="choose another name, or say --overwrite (overwrite=True)")
    return final, existing


@contextlib.contextmanager
def _understood(path: str) -> Iterator[None]:
    """Translate what a file system says into our errors."""
    try:
        yield
    except WanCompatError:
        raise
    except OSError as error:
        what = f"{path!r} cannot be written: {error.strerror}"
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidRequest(what, hint="choose a shorter name") from error
        if error.errno in NO_SPACE:
            raise DiskExceeded(what, hint="free some space or choose another folder") from error
        hint = "choose a folder that you may write to"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            hint = "create the folder first, or check the path"
        raise OutputNotWritable(what, hint=hint) from error


def _rename_without_replacing(folder_fd: int, old: str, new: str) -> None:
    """Rename, or raise FileExistsError and change nothing.

    renameat2 does it in one step. Where a file system lacks the flag (NFS), a hard link is as good. Where it lacks
    those too (some FUSE), the name is taken with an empty file first, which O_EXCL makes as exclusive.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(folder_fd, os.fsencode(old), folder_fd, os.fsencode(new), _RENAME_NOREPLACE)
        if done == 0:
            return
        code = ctypes.get_errno()
        if code not in _FLAG_UNKNOWN:
            raise OSError(code, os.strerror(code), new)
    try:
        os.link(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd, follow_symlinks=False)
        os.unlink(old, dir_fd=folder_fd)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder_fd))
        os.rename(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)


def _sync_folder(folder_fd: int) -> None:
    """Make a rename survive a power cut. A folder that may be written but not read cannot be synced: then not."""
    with contextlib.suppress(PermissionError):
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder_fd)
        try:
            os.fsync(readable)
        except OSError as error:
            if error.errno != errno.EINVAL:  # file systems that do not know fsync of folders
                raise
        finally:
            os.close(readable)


def _sha256(descriptor: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while chunk := os.pread(descriptor, 1 << 20, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


def _umask() -> int:
    """Read the umask without setting it, which would be seen by other threads for a moment."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    current = os.umask(0o077)
    os.umask(current)
    return current
