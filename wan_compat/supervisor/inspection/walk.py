"""Listing the files of a model: bounded, never out of its folder, and without opening anything but folders.

Links are followed to files only, and only into the model's own folder or, for a snapshot in a Hugging Face cache, into
its repository's `blobs/`. Hidden files and folders (`.git`, `.cache`) are no part of a model.
"""

from __future__ import annotations

import collections
import itertools
import os
import stat

from wan_compat.policies.facts import FileFact
from wan_compat.protocol.errors import ModelUnreadable, clean_text
from wan_compat.supervisor.inspection.locate import Place
from wan_compat.supervisor.inspection.problems import Problems, problem

MAX_ENTRIES = 2000  # files, folders and hidden ones; the largest Wan repository has about 500
MAX_DEPTH = 8  # of folders; the deepest Wan repository, Animate with its preprocessing models, has four
MAX_NAME_CHARS = 255


def list_files(place: Place, problems: Problems) -> dict[str, FileFact]:
    """Return the regular files by relative path, in order of their paths; everything else ends in `problems`.

    Raises:
        ModelUnreadable: The root itself may not be read.
    """
    if place.is_file:
        info = _root_status(place)
        name = os.path.basename(place.root)
        return {name: _fact(name, place.real, info)} if _plain(name, name, problems) else {}
    found: dict[str, FileFact] = {}
    left = MAX_ENTRIES
    # Level by level: what lies at the top is what names a model, and is listed even if the folder is too large.
    pending = collections.deque([("", 0)])
    while pending:
        folder, depth = pending.popleft()
        try:
            with os.scandir(os.path.join(place.real, folder)) as scan:
                entries = list(itertools.islice(scan, left + 1))
        except OSError as error:
            if not folder:
                raise _unreadable(place, error) from error
            problems.add(problem("file_unreadable", folder, f"folder {folder!r} cannot be read: {error.strerror}"))
            continue
        if len(entries) > left:
            problems.add(
                problem("too_many_files", folder, f"{place.root!r} has more than {MAX_ENTRIES} files and folders")
            )
            entries.pop()
            pending.clear()
        left -= len(entries)
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                fact = _look_at(place, entry, path, problems)
            except OSError as error:
                problems.add(problem("file_unreadable", path, f"{path!r} cannot be looked at: {error.strerror}"))
                continue
            if isinstance(fact, FileFact):
                found[path] = fact
            elif fact is _FOLDER and depth + 1 < MAX_DEPTH:
                pending.append((path, depth + 1))
            elif fact is _FOLDER:
                problems.add(problem("too_deep", path, f"folder {path!r} is not looked into"))
    return dict(sorted(found.items()))


_FOLDER = object()


def _look_at(place: Place, entry: os.DirEntry[str], path: str, problems: Problems) -> FileFact | object | None:
    """Return a file's fact, `_FOLDER`, or None for what is neither or may not be used."""
    if entry.is_symlink():
        return _follow(place, entry, path, problems)
    info = entry.stat(follow_symlinks=False)
    if not _plain(entry.name, path, problems):
        return None
    if stat.S_ISDIR(info.st_mode):
        return _FOLDER
    if not stat.S_ISREG(info.st_mode):
        problems.add(problem("special_file", path, f"{path!r} is {_kind(info.st_mode)}"))
        return None
    return _fact(path, f"{place.real}/{path}", info)


def _follow(place: Place, entry: os.DirEntry[str], path: str, problems: Problems) -> FileFact | None:
    # The kernel follows, at most 40 links, and /proc tells where it came out: following by hand takes time that grows
    # with the square of a chain's length. O_PATH names a file without opening it, be it a FIFO or a device.
    try:
        descriptor = os.open(entry.path, os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        problems.add(problem("file_unreadable", path, f"{path!r} is a link that this user may not follow"))
        return None
    except OSError as error:
        problems.add(problem("link_broken", path, f"{path!r} is a link to nothing ({error.strerror})"))
        return None
    try:
        info = os.fstat(descriptor)
        real = os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    if not any(real.startswith(f"{inside}/") for inside in place.inside):
        problems.add(problem("path_escape", path, f"{path!r} is a link that leads out of the repository"))
    elif not _plain(entry.name, path, problems):
        pass
    elif stat.S_ISDIR(info.st_mode):
        problems.add(problem("folder_link", path, f"{path!r} is a link to a folder, which is not followed"))
    elif not stat.S_ISREG(info.st_mode):
        problems.add(problem("special_file", path, f"{path!r} is a link to {_kind(info.st_mode)}"))
    else:
        return _fact(path, real, info)
    return None


def _plain(name: str, path: str, problems: Problems) -> bool:
    """Say whether a name can be shown, sent and compared as it is: nothing under another name is part of a model."""
    if name.isprintable() and clean_text(name, MAX_NAME_CHARS) == name:
        return True
    problems.add(problem("file_name_unsafe", path, f"the name {path!r} has control characters or is no text"))
    return False


def _fact(path: str, real: str, info: os.stat_result) -> FileFact:
    return FileFact(path, real, info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "no regular file")


def _root_status(place: Place) -> os.stat_result:
    try:
        return os.stat(place.real)
    except OSError as error:
        raise _unreadable(place, error) from error


def _unreadable(place: Place, error: OSError) -> ModelUnreadable:
    return ModelUnreadable(
        f"{place.root!r} may not be read by this user ({error.strerror})", hint="run as the user who owns the model"
    )
