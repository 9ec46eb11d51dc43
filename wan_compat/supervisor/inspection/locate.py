"""What MODEL means: a folder, a single weight file, a place in a Hugging Face cache, or a hub id that is in it.

    models--org--name/            a repository in the cache
        refs/main                 the commit that `main` was, when it was downloaded
        snapshots/<commit>/       files as links into
        blobs/                    their contents

https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import stat

from wan_compat.protocol.errors import ModelNotFound, ModelUnreadable

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
_SNAPSHOT = re.compile(r"(?P<repository>.+)/snapshots/(?P<revision>[^/]+)(/.*)?", re.DOTALL)
_PREFIX = "models--"
_HINT = "give a folder, a weight file, or the id of a repository in the local Hugging Face cache"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model lies. `root` is the path to name it by, `real` the same without links, `inside` the folders into
    which its own links may lead."""

    root: str
    real: str
    is_file: bool
    inside: tuple[str, ...]
    repository: str | None = None
    revision: str | None = None


def locate(path: str | os.PathLike[str]) -> Place:
    """Find the model that `path` means; what exists under that path comes before a hub id.

    Raises:
        ModelNotFound: Nothing is there, or not in the cache, or it is neither a folder nor a regular file.
        ModelUnreadable: It may not be looked at by this user.
    """
    path = os.fspath(path)
    if "\0" in path or not path:
        raise ModelNotFound(f"{path!r} is no path", hint=_HINT)
    try:
        mode = os.stat(path).st_mode
        root = os.path.abspath(path)
        if stat.S_ISDIR(mode) and _is_repository(root):
            root = _snapshot(root)
    except (FileNotFoundError, NotADirectoryError):
        root, mode = _cached(path), stat.S_IFDIR
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelUnreadable(f"{path!r} cannot be looked at: {why}", hint="run as the user who owns it") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise ModelNotFound(f"{path!r} is neither a folder nor a regular file", hint=_HINT)
    real = os.path.realpath(root)
    inside: tuple[str, ...] = (real,)
    repository = revision = None
    # Any folder in a snapshot will do, because a single component or file may have been given. As it was written comes
    # first: a file's own link leads to blobs/, where its name and revision are lost.
    match = _SNAPSHOT.fullmatch(root) or _SNAPSHOT.fullmatch(real)
    if match is not None and os.path.isdir(os.path.join(match["repository"], "blobs")):
        inside = (real, os.path.join(os.path.realpath(match["repository"]), "blobs"))
        folder = os.path.basename(match["repository"])
        if folder.startswith(_PREFIX):
            repository = folder.removeprefix(_PREFIX).replace("--", "/")
            revision = match["revision"]
    return Place(root, real, stat.S_ISREG(mode), inside, repository, revision)


def hub_cache() -> str:
    """Return the folder of the local Hugging Face cache, decided as huggingface_hub's `constants.py` does."""
    environment = os.environ
    cache = environment.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = environment.get("HF_HOME") or os.path.join(cache, "huggingface")
    hub = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.abspath(os.path.expandvars(os.path.expanduser(hub)))


def _cached(path: str) -> str:
    if _HUB_ID.fullmatch(path) is None or "--" in path or ".." in path:
        raise ModelNotFound(f"{path!r} is nothing: no such file or folder", hint=_HINT)
    cache = hub_cache()
    repository = os.path.join(cache, _PREFIX + path.replace("/", "--"))
    try:
        present = _is_repository(repository)
        if present:
            return _snapshot(repository)
    except OSError as error:
        raise ModelUnreadable(
            f"{repository!r} cannot be read: {error.strerror}", hint="run as the user who owns the cache"
        ) from error
    raise ModelNotFound(
        f"{path!r} is neither a file or folder here nor a repository in the local cache ({cache})",
        hint=f"give --download too, or fetch it with another tool: hf download {path}",
    )


def _is_repository(folder: str) -> bool:
    return os.path.basename(folder).startswith(_PREFIX) and os.path.isdir(os.path.join(folder, "snapshots"))


def _snapshot(repository: str) -> str:
    """Return the snapshot that `refs/main` names, or the only one."""
    snapshots = os.path.join(repository, "snapshots")
    revision = _main(repository)
    if revision is not None and os.path.isdir(os.path.join(snapshots, revision)):
        return os.path.join(snapshots, revision)
    with os.scandir(snapshots) as scan:
        present = [entry.name for entry in itertools.islice(scan, 1000) if entry.is_dir(follow_symlinks=False)]
    if len(present) == 1:
        return os.path.join(snapshots, present[0])
    named = "names none of them" if revision is not None else "is missing"
    raise ModelNotFound(
        f"{repository!r} has {len(present)} snapshots, and refs/main {named}",
        hint=f"give the folder of one snapshot in {snapshots}" if present else "download the repository again",
    )


def _main(repository: str) -> str | None:
    try:
        descriptor = os.open(os.path.join(repository, "refs", "main"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        name = os.read(descriptor, 200).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    # It becomes part of a path.
    return name if _REVISION.fullmatch(name) else None
