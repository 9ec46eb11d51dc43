"""Pictures and videos that a user gives: copied into sealed memory, unread, for the worker that will decode them.

The copy is what the job works from: a file that changes later changes nothing, and the worker gets no path, no open
file of the user's and nothing that it could write to. Nothing here looks into a byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import stat
from collections.abc import Iterator

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MAX_ALL_MEDIA_BYTES, MAX_MEDIA, MAX_MEDIA_BYTES, MediaRole, MediaSpec

_CHUNK_BYTES = 8 << 20
# With the last one nobody can take a seal away or add one; a worker can read, and that is all.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@dataclasses.dataclass(frozen=True)
class MediaFiles:
    """What is handed over: `descriptors` of sealed memory, one for each of `specs`."""

    specs: tuple[MediaSpec, ...]
    descriptors: tuple[int, ...]


@contextlib.contextmanager
def copied_media(media: tuple[tuple[MediaRole, str], ...]) -> Iterator[MediaFiles]:
    """Copy the files of a job into memory; it is given back on leaving.

    Args:
        media: Role and path of each, in the order in which they travel.

    Raises:
        InvalidRequest: A path is no regular file, cannot be read, is empty, or too large.
    """
    if len(media) > MAX_MEDIA:
        raise InvalidRequest(f"{len(media)} pictures and videos were given, at most {MAX_MEDIA} are taken")
    with contextlib.ExitStack() as stack:
        specs: list[MediaSpec] = []
        descriptors: list[int] = []
        for role, path in media:
            descriptor, size = _copied(role, path)
            stack.callback(os.close, descriptor)
            specs.append(MediaSpec(role=role, bytes=size))
            descriptors.append(descriptor)
            if sum(spec.bytes for spec in specs) > MAX_ALL_MEDIA_BYTES:
                raise InvalidRequest(
                    f"the pictures and videos together are larger than {MAX_ALL_MEDIA_BYTES >> 20} MiB",
                    hint="give shorter or smaller ones: no more frames than the job has are used",
                )
        yield MediaFiles(tuple(specs), tuple(descriptors))


def _copied(role: MediaRole, path: str) -> tuple[int, int]:
    name = role.replace("_", " ")
    try:
        # Not blocking: opening a pipe would wait for its other end.
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has a NUL in its name"
        raise InvalidRequest(f"the {name} {path!r} cannot be opened: {reason}", hint="check the path") from error
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRequest(f"the {name} {path!r} is no regular file", hint="give a picture's or video's path")
        if status.st_size == 0:
            raise InvalidRequest(f"the {name} {path!r} is empty")
        if status.st_size > MAX_MEDIA_BYTES:
            raise _too_large(name, path)
        return _into_memory(source, name, path)
    finally:
        os.close(source)


def _into_memory(source: int, name: str, path: str) -> tuple[int, int]:
    memory = os.memfd_create("wan-media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = 0
        # To its end, not to its size: a file may grow, and what is counted is what is handed over.
        while moved := os.sendfile(memory, source, None, _CHUNK_BYTES):
            size += moved
            if size > MAX_MEDIA_BYTES:
                raise _too_large(name, path)
        if size == 0:
            raise InvalidRequest(f"the {name} {path!r} is empty")
        os.lseek(memory, 0, os.SEEK_SET)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(memory)
        raise InvalidRequest(f"the {name} {path!r} cannot be read: {error.strerror or error}") from error
    except BaseException:
        os.close(memory)
        raise
    return memory, size


def _too_large(name: str, path: str) -> InvalidRequest:
    return InvalidRequest(
        f"the {name} {path!r} is larger than {MAX_MEDIA_BYTES >> 20} MiB", hint="give a shorter or smaller one"
    )
