"""Every name below a model's folder, hidden ones too: bounded, links never followed out, nothing but folders opened.

Unlike inspection's walk, which lists what could be loaded, this one leaves nothing out: what is not a regular file
inside the repository becomes an observation.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator

from wan_compat.policies.scan.rules import Observation
from wan_compat.protocol.errors import ModelUnreadable
from wan_compat.supervisor.hashing import FileIdentity
from wan_compat.supervisor.inspection.locate import Place

MAX_FILES = 250_000
MAX_DEPTH = 40

# Hidden by custom, and in most repositories.
_USUAL_HIDDEN = frozenset({".gitattributes", ".gitignore", ".gitkeep", ".git", ".cache", ".huggingface", ".github"})


@dataclasses.dataclass(frozen=True)
class ListedFile:
    """A regular file. `path` is relative with forward slashes, surrogates standing for bytes that are no UTF-8;
    `real_path` is the file after a link into the repository was followed."""

    path: str
    real_path: str
    identity: FileIdentity

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclasses.dataclass
class Listing:
    """What was found. `notes` are observations with their path; `watched` is every name with what it was when listed,
    to be compared afterwards."""

    files: list[ListedFile] = dataclasses.field(default_factory=list)
    notes: list[tuple[str, Observation]] = dataclasses.field(default_factory=list)
    watched: list[tuple[str, FileIdentity]] = dataclasses.field(default_factory=list)

    def note(self, path: str, rule: str, message: str) -> None:
        self.notes.append((path, Observation(rule, message)))


def list_everything(place: Place) -> Listing:
    """List a located model.

    Raises:
        ModelUnreadable: Its own folder may not be listed.
    """
    listing = Listing()
    if place.is_file:
        info = os.stat(place.real)
        identity = FileIdentity.of(info)
        listing.files.append(ListedFile(os.path.basename(place.root), place.real, identity))
        listing.watched.append((place.real, identity))
        return listing
    pending = [("", 0)]
    count = 0
    while pending:
        folder, depth = pending.pop()
        for entry in _entries(place, folder, listing):
            count += 1
            if count > MAX_FILES:
                listing.note(folder, "folder-too-many", f"more than {MAX_FILES:,} files and folders")
                return listing
            path = f"{folder}/{entry.name}" if folder else entry.name
            _note_name(entry.name, path, listing)
            if entry.is_symlink():
                _follow(place, entry, path, listing)
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError as error:
                listing.note(path, "scan-changed", f"it went away: {error.strerror}")
                continue
            if stat.S_ISDIR(info.st_mode):
                if depth + 1 > MAX_DEPTH:
                    listing.note(path, "folder-too-deep", f"more than {MAX_DEPTH} folders deep")
                else:
                    pending.append((path, depth + 1))
            else:
                _add(listing, path, entry.path, info)
    return listing


def changes(listing: Listing) -> Iterator[str]:
    """Yield the paths that are not what they were when they were listed."""
    for path, identity in listing.watched:
        try:
            same = FileIdentity.of(os.stat(path, follow_symlinks=False)) == identity
        except OSError:
            same = False
        if not same:
            yield path


def _entries(place: Place, folder: str, listing: Listing) -> list[os.DirEntry[str]]:
    path = os.path.join(place.real, folder)
    try:
        # The folder is noted before it is read: what is added while it is read shows afterwards.
        listing.watched.append((path, FileIdentity.of(os.stat(path, follow_symlinks=False))))
        with os.scandir(path) as found:
            entries = []
            for entry in found:
                entries.append(entry)
                if len(entries) > MAX_FILES:
                    break
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not folder:
            raise ModelUnreadable(
                f"{place.root!r} cannot be listed: {error.strerror}", hint="run as the user who owns the model"
            ) from error
        listing.note(folder, "file-unreadable", f"the folder cannot be listed: {error.strerror}")
        return []


def _add(listing: Listing, path: str, real: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        listing.note(path, "file-special", f"it is a {_kind(info.st_mode)}")
        return
    if info.st_mode & (stat.S_ISUID | stat.S_ISGID):
        listing.note(path, "file-setuid", f"its mode is {stat.S_IMODE(info.st_mode):o}")
    identity = FileIdentity.of(info)
    listing.files.append(ListedFile(path, real, identity))
    listing.watched.append((real, identity))


def _follow(place: Place, entry: os.DirEntry[str], path: str, listing: Listing) -> None:
    try:
        listing.watched.append((entry.path, FileIdentity.of(entry.stat(follow_symlinks=False))))
        target = os.readlink(entry.path)
        real = os.path.realpath(entry.path, strict=True)
        info = os.stat(real, follow_symlinks=False)
    except OSError as error:
        target = _target(entry.path)
        leads_out = os.path.isabs(target) or target.startswith("..")
        listing.note(path, "link-escape" if leads_out else "link-broken", f"a link to {target!r}: {error.strerror}")
        return
    if not any(real == folder or real.startswith(folder + os.sep) for folder in place.inside):
        listing.note(path, "link-escape", f"a link to {target!r}, outside of the repository")
    elif stat.S_ISDIR(info.st_mode):
        listing.note(path, "link-folder", f"a link to the folder {target!r}; not followed")
    else:
        if real.startswith(place.real + os.sep):  # not into the blobs of a snapshot, which every file there is
            listing.note(path, "link-inside", f"a link to {target!r}")
        _add(listing, path, real, info)


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "?"


def _note_name(name: str, path: str, listing: Listing) -> None:
    if not name.isprintable():
        listing.note(path, "file-name", "its name has control characters, or bytes that are no UTF-8")
    elif (
        name.startswith(".")
        and name not in _USUAL_HIDDEN
        and "/.git/" not in f"/{path}"
        and "/.cache/" not in f"/{path}"
    ):
        listing.note(path, "file-hidden", "a hidden name")


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "FIFO"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device"
