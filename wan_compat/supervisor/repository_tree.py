"""Reading a repository into the tree that an approval is about: every file with its size and content hash.

Links are left out, and a file that changes while it is read is an error. `facts` name each file by device and inode as
it was hashed, so that what replaces it afterwards is not what gets admitted. The one kind of link that counts is a
Hugging Face snapshot's own, from the snapshot into the `blobs` of the same repository:

    models--org--name/snapshots/COMMIT/transformer/config.json -> ../../../blobs/HASH

A folder like that is known by repository and commit; any other by its real path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator

from wan_compat.policies.facts import FileFact
from wan_compat.policies.trust import MAX_FILES, RepositoryTree, TrustedFile, must_hash
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid, ModelNotFound, ModelUnreadable, clean_text
from wan_compat.supervisor.inspection.locate import Place, locate

MAX_ENTRIES = 20_000  # files, folders and whatever else, hidden ones too
MAX_DEPTH = 12
MAX_PATH_CHARS = 1000
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One file to read. `target` is the blob that it links to, None for a file in its place."""

    path: str
    target: str | None


def identify(path: str) -> tuple[Place, str]:
    """Return where a model lies, and the name under which it is remembered: repository id, or real path.

    Raises:
        ModelNotFound, ModelUnreadable: As `locate`.
        ModelInvalid: The path is not UTF-8.
    """
    place = locate(path)
    source = place.repository or place.real
    try:
        source.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelInvalid(f"the path {path!r} is not UTF-8", hint="rename the folder") from error
    return place, source


def read_tree(path: str) -> RepositoryTree:
    """Read and hash a repository. Takes about a second per gigabyte that is not weights.

    Raises:
        ModelNotFound: No such folder, or a single file, which has no code of its own.
        ModelUnreadable: A file may not be read by this user.
        ModelCorrupt: More files or deeper folders than any model has, or a broken link of a snapshot.
        ModelInvalid: A name that is not UTF-8, or a file that changed while it was read.
    """
    place, source = identify(path)
    if place.is_file:
        raise ModelNotFound(
            f"{path!r} is a single file; approvals are about the folder of a repository",
            hint="give the folder of the model; a single weight file needs no approval",
        )
    root = place.real
    blobs = place.inside[1] if place.repository is not None else None
    excluded: list[tuple[str, str]] = []
    read = sorted((_hash_file(root, entry) for entry in _walk(root, blobs, excluded)), key=lambda pair: pair[0].path)
    if not read:
        raise ModelCorrupt(f"{path!r} has no files", hint="give the folder of the model")
    return RepositoryTree(
        source=source,
        revision=place.revision,
        root=root,
        files=tuple(file for file, _ in read),
        facts=tuple(fact for _, fact in read),
        excluded=tuple(sorted(excluded)),
    )


def _walk(root: str, blobs: str | None, excluded: list[tuple[str, str]]) -> Iterator[_Entry]:
    entries_seen, files_seen = 0, 0
    pending = [""]
    while pending:
        folder = pending.pop()
        descriptor = _open(os.path.join(root, folder), folder or root, os.O_DIRECTORY)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    entries_seen += 1
                    if entries_seen > MAX_ENTRIES:
                        raise ModelCorrupt(
                            f"{root!r} has more than {MAX_ENTRIES} entries", hint="give the model's own folder"
                        )
                    relative = _relative(folder, entry.name)
                    reason = ""
                    target: str | None = None
                    if entry.name.startswith("."):
                        reason = "hidden"
                    elif entry.is_symlink():
                        target = _blob(root, relative, blobs)
                        reason = "" if target is not None else "a link"
                    elif entry.is_dir(follow_symlinks=False):
                        if relative.count("/") + 1 >= MAX_DEPTH:
                            raise ModelCorrupt(
                                f"{clean_text(relative, 200)!r} is nested deeper than {MAX_DEPTH} folders",
                                hint="give the model's own folder",
                            )
                        pending.append(relative)
                        continue
                    elif not entry.is_file(follow_symlinks=False):
                        reason = "no regular file"
                    if reason:
                        excluded.append((relative, reason))
                        continue
                    files_seen += 1
                    if files_seen > MAX_FILES:
                        raise ModelCorrupt(
                            f"{root!r} has more than {MAX_FILES} files", hint="give the model's own folder"
                        )
                    yield _Entry(relative, target)
        finally:
            os.close(descriptor)


def _relative(folder: str, name: str) -> str:
    relative = f"{folder}/{name}" if folder else name
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelInvalid(
            f"the file name {clean_text(relative, 200)!r} is not UTF-8",
            hint="rename or remove the file: no model needs such a name",
        ) from error
    if len(relative) > MAX_PATH_CHARS:
        raise ModelCorrupt(f"{clean_text(relative, 200)!r} is longer than {MAX_PATH_CHARS} characters")
    return relative


def _blob(root: str, relative: str, blobs: str | None) -> str | None:
    """Return the file in the repository's own `blobs` that a snapshot's link means, None for any other link."""
    if blobs is None:
        return None
    link = os.path.join(root, relative)
    target = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
    return target if os.path.dirname(target) == blobs else None


def _hash_file(root: str, entry: _Entry) -> tuple[TrustedFile, FileFact]:
    real_path = entry.target or os.path.join(root, entry.path)
    descriptor = _open(real_path, entry.path, 0)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise ModelCorrupt(f"{entry.path!r} is no regular file")
        digest = None
        if must_hash(entry.path, before.st_size):
            hasher, count = hashlib.sha256(), 0
            # Never more than was there at first: a file that grows as fast as it is read would have no end.
            while chunk := os.read(descriptor, min(_CHUNK_BYTES, before.st_size + 1 - count)):
                hasher.update(chunk)
                count += len(chunk)
                if count > before.st_size:
                    break
            digest = hasher.hexdigest() if count == before.st_size else None
        after = os.fstat(descriptor)
        if (digest is None and must_hash(entry.path, before.st_size)) or _identity(before) != _identity(after):
            raise ModelInvalid(f"{entry.path!r} changed while it was read", hint="try again when nothing writes to it")
        fact = FileFact(
            entry.path,
            real_path,
            before.st_size,
            before.st_dev,
            before.st_ino,
            before.st_mtime_ns,
            before.st_ctime_ns,
        )
        return TrustedFile(path=entry.path, size=before.st_size, sha256=digest), fact
    finally:
        os.close(descriptor)


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _open(path: str, shown: str, flags: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except PermissionError as error:
        raise ModelUnreadable(f"{shown!r} may not be read by this user", hint="run as the model's owner") from error
    except OSError as error:
        raise ModelCorrupt(
            f"{shown!r} cannot be opened: {error.strerror}", hint="download the repository again, all of it"
        ) from error
