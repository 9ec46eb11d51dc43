"""Writes a repaired copy of a model: its files hard-linked where the disk allows, copied elsewhere, and a new index.

The original is only read, and the copy is there whole or not at all (`new_folder.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator

from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.repair import INDEX, Proposal
from wan_compat.protocol.errors import DiskExceeded, ModelCorrupt, ModelUnreadable
from wan_compat.supervisor.new_folder import new_folder

_CHUNK_BYTES = 16 << 20

Progress = Callable[[str, int, int], None]  # file, bytes copied so far, bytes of all files that are copied


def write_repaired_copy(facts: ModelFacts, proposal: Proposal, target: str, progress: Progress | None = None) -> None:
    """Write the model at `facts.root` to `target` with the proposed index.

    A hard link shares its bytes with the original: both take the room of one.

    Args:
        target: A folder that does not exist or is empty; its parent must exist.
        progress: Told about files that have to be copied.

    Raises:
        OutputExists, InvalidRequest: The target is taken, or lies inside the model.
        OutputNotWritable, DiskExceeded: It cannot be written there.
        ModelCorrupt: A file of the model changed since it was read.
        ModelUnreadable: A file may not be read.
    """
    with new_folder(target, outside=facts.root) as unfinished:
        _fill(facts, unfinished, progress or (lambda *_: None))
        with open(os.path.join(unfinished, INDEX), "x", encoding="utf-8") as file:
            file.write(proposal.text)
            file.flush()
            os.fsync(file.fileno())


def _fill(facts: ModelFacts, folder: str, progress: Progress) -> None:
    device = os.stat(folder).st_dev
    left = []
    for fact in facts.files.values():
        if fact.path == INDEX:
            continue
        place = os.path.join(folder, *fact.path.split("/"))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if fact.device != device or not _link(fact, place):
            left.append((fact, place))
    total = sum(fact.size for fact, _ in left)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise DiskExceeded(
            f"{total / 1e9:.1f} GB have to be copied, {free / 1e9:.1f} GB are free in {os.path.dirname(folder)!r}",
            hint="give a folder on the model's own disk: files are linked there and take no room",
        )
    done = 0
    for fact, place in left:
        for count in copy_file(fact, place):
            done += count
            progress(fact.path, done, total)


def _link(fact: FileFact, place: str) -> bool:
    """Hard-link one file; False where the file system or the kernel (fs.protected_hardlinks) does not let us."""
    try:
        os.link(fact.real_path, place, follow_symlinks=False)
    except OSError:
        return False
    _require_same(fact, os.lstat(place))
    return True


def copy_file(fact: FileFact, place: str) -> Iterator[int]:
    """Copy one file that was looked at to a new place; yields the bytes of each step."""
    try:
        source = os.open(fact.real_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ModelUnreadable(f"{fact.path!r} may not be read: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, source)
        _require_same(fact, os.fstat(source))
        out = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        stack.callback(os.close, out)
        left = fact.size
        while left:
            count = os.sendfile(out, source, None, min(left, _CHUNK_BYTES))
            if count == 0:
                raise ModelCorrupt(f"{fact.path!r} became shorter while it was copied", hint="try again")
            left -= count
            yield count


def _require_same(fact: FileFact, info: os.stat_result) -> None:
    if (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns) != (
        fact.device,
        fact.inode,
        fact.size,
        fact.mtime_ns,
    ):
        raise ModelCorrupt(f"{fact.path!r} changed since it was checked", hint="try again when nothing writes there")
