"""One repository in the local Hugging Face cache: files that are under way, finished contents, and the names they get.

    models--org--name/
        blobs/<hash>.wan-compat.incomplete     under way: whoever holds its lock (flock) writes it, and goes on with it
        blobs/<hash>                           complete, and checked against that very hash before it got the name
        snapshots/<commit>/<path>              links into blobs/, made when everything is there
        refs/<revision>                        the commit, last of all

So a download that was interrupted, by whatever, leaves nothing that looks like a model, and other tools that use this
cache find every file. https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat

from wan_compat.policies.download import RemoteFile
from wan_compat.protocol.errors import EnvironmentLacks, FetchFailed, ModelCorrupt
from wan_compat.supervisor.hashing import FileIdentity, HashCache, HashRequest, hash_file

_INCOMPLETE = ".wan-compat.incomplete"
_READ_BYTES = 1 << 20


class HubRepository:
    """A repository's folder in the cache. Made by the first file that is opened in it."""

    def __init__(self, cache: str, repository: str, hashes: HashCache | None = None) -> None:
        self.path = os.path.join(cache, "models--" + repository.replace("/", "--"))
        self.repository = repository
        self._hashes = hashes if hashes is not None else HashCache()

    def snapshot(self, commit: str) -> str:
        return os.path.join(self.path, "snapshots", commit)

    def has(self, file: RemoteFile) -> bool:
        """Whether the content is there, whole and with the right hash, from whatever tool."""
        path = self._blob(file)
        try:
            info = os.lstat(path)
        except OSError:
            return False
        return stat.S_ISREG(info.st_mode) and info.st_size == file.size and self.hash_matches(path, file)

    def hash_matches(self, path: str, file: RemoteFile) -> bool:
        """Read the file, unless its hash is remembered, and compare it with the listing's."""
        identity = FileIdentity.of(os.lstat(path))
        if identity.size != file.size:
            return False
        if file.sha256 is None:
            return git_sha1(path, file.size) == file.git_sha1
        known = self._hashes.get(identity)
        if known is None:
            known = hash_file(HashRequest(path, identity))
            self._hashes.put(identity, known)
        return known == file.sha256

    def open_partial(self, file: RemoteFile) -> int:
        """Open the file that is under way for reading and writing, made if need be, and ours until it is closed.

        Raises:
            FetchFailed: Another process is fetching it.
            EnvironmentLacks: The cache cannot be written.
        """
        try:
            os.makedirs(os.path.join(self.path, "blobs"), exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self.partial(file), flags, 0o644)
        except OSError as error:
            raise _not_writable(self.path, error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise EnvironmentLacks(f"{self.partial(file)} is no regular file", hint="remove it")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size > file.size:
                os.ftruncate(descriptor, 0)
        except BlockingIOError:
            os.close(descriptor)
            raise FetchFailed(
                f"{file.path} of {self.repository} is being downloaded by another process", hint="wait for it to end"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def partial(self, file: RemoteFile) -> str:
        return self._blob(file) + _INCOMPLETE

    def complete(self, file: RemoteFile) -> None:
        """Give a fetched and checked file its name. Atomic: it replaces a wrong one of that name."""
        os.replace(self.partial(file), self._blob(file))

    def discard(self, file: RemoteFile) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial(file))

    def link(self, commit: str, file: RemoteFile) -> None:
        """Give a complete file its path in the snapshot."""
        path = os.path.join(self.snapshot(commit), file.path)
        target = os.path.join("../" * (file.path.count("/") + 2), "blobs", file.blob)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if os.path.islink(path) and os.readlink(path) == target:
                return
            temporary = f"{path}.{secrets.token_hex(4)}"
            os.symlink(target, temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise _not_writable(path, error) from error

    def name_commit(self, revision: str, commit: str) -> None:
        """Say which commit a branch or tag was. A revision that is a commit needs no name."""
        if revision == commit or "/" in revision:
            return
        folder = os.path.join(self.path, "refs")
        try:
            os.makedirs(folder, exist_ok=True)
            temporary = os.path.join(folder, f".{secrets.token_hex(4)}")
            with open(temporary, "x", encoding="ascii") as file:
                file.write(commit)
            os.replace(temporary, os.path.join(folder, revision))
        except OSError as error:
            raise _not_writable(folder, error) from error

    def close(self) -> None:
        """Keep the hashes that were computed."""
        self._hashes.save()

    def _blob(self, file: RemoteFile) -> str:
        return os.path.join(self.path, "blobs", file.blob)


def git_sha1(path: str, size: int) -> str:
    """Return the name that git gives to a file's content: SHA-1 over a header and the bytes."""
    # SHA-1 is what the hub has for small files. Collisions can be made, but only by who made the repository.
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ModelCorrupt(f"{path!r} is no regular file")
        while chunk := os.read(descriptor, _READ_BYTES):
            digest.update(chunk)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _not_writable(path: str, error: OSError) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"{path} in the Hugging Face cache cannot be written: {error.strerror}",
        hint="make the cache yours, or set HF_HUB_CACHE to a folder that is",
    )
