"""SHA-256 of files, on all cores, remembered for as long as a file stays what it was.

Weights are tens of gigabytes: reading them twice costs minutes. A hash is kept in the user's cache folder under device,
inode, size, mtime and ctime; the ctime is set by the kernel and cannot be set back by who writes the file. What is
decided by the hash of code (policies/trust.py) reads the file every time and does not ask this cache.

    hash_files(files)   threads read and hash, largest file first (hashlib lets go of the interpreter's lock);
                        the caller's thread reports progress and takes Ctrl-C
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from wan_compat.protocol.errors import ModelCorrupt, ModelUnreadable, StateCorrupt, StateUnsafe
from wan_compat.supervisor.private_files import PrivateFolder

CACHE_NAME = "hashes.json"
MAX_CACHE_BYTES = 16 << 20
MAX_CACHE_ENTRIES = 50_000
CACHE_LOCK_TIMEOUT_S = 2.0
READ_BYTES = 4 << 20
PROGRESS_PERIOD_S = 0.1

# A file that was written within the coarsest clock of a file system (FAT and old NFS: 2 s) could be written again and
# keep its times. Its hash is right now, and not remembered.
SETTLED_NS = 2_500_000_000

Progress = Callable[[int, int], None]


class FileChanged(ModelCorrupt):
    """A file was replaced, or written to, while it was read."""

    code = "file_changed"


@dataclasses.dataclass(frozen=True)
class FileIdentity:
    """What makes a file the same one as before."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> FileIdentity:
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    @property
    def key(self) -> str:
        return f"{self.device}:{self.inode}:{self.size}:{self.mtime_ns}:{self.ctime_ns}"


@dataclasses.dataclass(frozen=True)
class HashRequest:
    """A file to hash: where it is, and which file it was when it was listed."""

    path: str
    identity: FileIdentity


class HashCache:
    """Hashes by identity, in `<cache>/wan-compat/hashes.json`. A cache that cannot be used is an empty one.

    Not thread-safe. Changes are kept in memory until `save`, which merges them with what others wrote meanwhile.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(platformdirs.user_cache_dir("wan-compat", appauthor=False))
        self._new: dict[str, str] = {}
        self._known: dict[str, str] = {}
        # A cache that others can write is not read: who writes it decides what we believe.
        with contextlib.suppress(StateUnsafe, StateCorrupt, OSError), PrivateFolder(self._folder) as opened:
            self._known = _entries(opened.read(CACHE_NAME, MAX_CACHE_BYTES))

    def get(self, identity: FileIdentity) -> str | None:
        return self._new.get(identity.key) or self._known.get(identity.key)

    def put(self, identity: FileIdentity, sha256: str) -> None:
        """Remember a hash, unless the file is so young that it could change without a sign."""
        if time.time_ns() - max(identity.ctime_ns, identity.mtime_ns) > SETTLED_NS:
            self._new[identity.key] = sha256

    def save(self) -> bool:
        """Write what is new; return whether it was. A full disk or a foreign folder costs the cache, nothing else."""
        if not self._new:
            return False
        with (
            contextlib.suppress(StateUnsafe, StateCorrupt, OSError),
            PrivateFolder(self._folder, create=True) as opened,
        ):
            with opened.lock(CACHE_NAME, timeout_s=CACHE_LOCK_TIMEOUT_S):
                known: dict[str, str] = {}
                with contextlib.suppress(StateCorrupt):
                    known = _entries(opened.read(CACHE_NAME, MAX_CACHE_BYTES))
                merged = {key: value for key, value in known.items() if key not in self._new} | self._new
                while len(merged) > MAX_CACHE_ENTRIES:
                    del merged[next(iter(merged))]  # the oldest stands first
                opened.replace(CACHE_NAME, json.dumps({"version": 1, "sha256": merged}).encode())
            self._known, self._new = merged, {}
            return True
        return False


def hash_files(
    files: Sequence[HashRequest],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: HashCache | None = None,
) -> dict[str, str]:
    """Return the SHA-256 of each file by its path.

    Args:
        threads: None is one for each core that this process may use.
        progress: Called in this thread with bytes done and bytes in all, about ten times a second.
        cache: Asked first, and told what is new; None remembers nothing. Saving it is the caller's.

    Raises:
        FileChanged: A file is not the one that was listed, or changed while it was read.
        ModelUnreadable: It may not be read, or the disk fails.
    """
    found: dict[str, str] = {}
    missing: list[HashRequest] = []
    for file in files:
        known = cache.get(file.identity) if cache is not None else None
        if known is not None:
            found[file.path] = known
        else:
            missing.append(file)
    total = sum(file.identity.size for file in files)
    counter = _Counter(total - sum(file.identity.size for file in missing))
    if missing:
        # The largest first: it alone decides when the last thread is done.
        missing.sort(key=lambda file: -file.identity.size)
        workers = max(1, min(threads or len(os.sched_getaffinity(0)), len(missing)))
        with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="wan-compat-hash") as pool:
            futures = {pool.submit(hash_file, file, counter.add): file for file in missing}
            try:
                _wait(futures, counter, total, progress)
            except BaseException:
                counter.stop()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for future, file in futures.items():
            found[file.path] = future.result()
            if cache is not None:
                cache.put(file.identity, found[file.path])
    if progress is not None:
        progress(total, total)
    return found


def hash_file(file: HashRequest, count: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of one file, which has to be and to stay the one that was listed. Raises as `hash_files`."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or FileIdentity.of(info) != file.identity:
                raise FileChanged(f"{file.path!r} is not the file that was listed", hint="do it again")
            sha256 = _hash_descriptor(descriptor, info.st_size, count)
            if FileIdentity.of(os.fstat(descriptor)) != file.identity:
                raise FileChanged(f"{file.path!r} changed while it was read", hint="do it again")
            return sha256
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ModelUnreadable(f"{file.path!r} cannot be read: {error.strerror}", hint="run as its owner") from error


def _hash_descriptor(descriptor: int, size: int, count: Callable[[int], None]) -> str:
    # Twice as much read ahead; the pages stay in the cache, since whoever hashes weights loads them next.
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    digest = hashlib.sha256()
    buffer = bytearray(min(READ_BYTES, max(size, 1)))
    view = memoryview(buffer)
    while length := os.readv(descriptor, [buffer]):
        digest.update(view[:length])
        count(length)
    return digest.hexdigest()


class _Stopped(Exception):
    pass


class _Counter:
    """Bytes done, by all threads; and the way to stop them."""

    def __init__(self, start: int) -> None:
        self.done = start
        self._lock = threading.Lock()
        self._stopped = False

    def add(self, count: int) -> None:
        if self._stopped:
            raise _Stopped
        with self._lock:
            self.done += count

    def stop(self) -> None:
        self._stopped = True


def _wait(futures: dict[Any, HashRequest], counter: _Counter, total: int, progress: Progress | None) -> None:
    pending = set(futures)
    while pending:
        done, pending = concurrent.futures.wait(
            pending, timeout=PROGRESS_PERIOD_S, return_when=concurrent.futures.FIRST_EXCEPTION
        )
        for future in done:
            if (error := future.exception()) is not None:
                raise error
        if progress is not None:
            progress(min(counter.done, total), total)


_KEY = re.compile(r"[0-9]{1,20}(?::-?[0-9]{1,20}){4}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _entries(raw: bytes | None) -> dict[str, str]:
    """Return what a cache file holds; a file that is not one holds nothing."""
    if raw is None:
        return {}
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    entries = document.get("sha256") if isinstance(document, dict) and document.get("version") == 1 else None
    if not isinstance(entries, dict):
        return {}
    return {
        key: value
        for key, value in entries.items()
        if _KEY.fullmatch(key) and isinstance(value, str) and _SHA256.fullmatch(value)
    }
