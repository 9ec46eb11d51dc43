"""Which files of a hub repository are fetched: those that admission could let a worker see, and nothing beside them.

    listing (from the hub, hostile)  ->  the index first  ->  the parts that it names  ->  a reason for every other file

Pickles, duplicates, pictures and, in safe mode, code are never fetched: what is not on the disk cannot be loaded by
mistake. The hub's word on sizes and hashes is what the fetched bytes are held to, at one commit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from wan_compat.policies.admission import is_opened, is_pickle_name
from wan_compat.policies.models import is_component
from wan_compat.protocol.errors import (
    DiskExceeded,
    FetchFailed,
    ModelCorrupt,
    ModelIndexMissing,
    PickleRefused,
    clean_text,
)

INDEX = "model_index.json"
MAX_FILES = 2000  # as inspection reads; the largest Wan repository has about 500
MAX_DEPTH = 8
MAX_NAME_CHARS = 255
MAX_PATH_CHARS = 1000
MAX_SMALL_BYTES = 64 << 20  # whatever is no weights; UMT5's tokenizer has 17 MB
# More is not served by the hub over plain HTTP (huggingface_hub/constants.py, MAX_HTTP_DOWNLOAD_SIZE).
MAX_WEIGHT_BYTES = 50_000_000_000
MAX_CODE_BYTES = 1 << 20
MAX_CODE_FILES = 200
# So that the machine stays usable when the last byte is written.
DISK_RESERVE_BYTES = 512 << 20

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WEIGHTS = (".safetensors", ".gguf")
# What supervisor/integrity.py compares files with.
_EVIDENCE = re.compile(r"SHA256SUMS|model\.sig|[\w.-]+\.sigstore\.json|[\w.-]+\.sha256", re.ASCII)
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. Large ones have a SHA-256 (Git LFS), small ones the SHA-1 of their git blob."""

    path: str
    size: int
    git_sha1: str
    sha256: str | None = None

    @property
    def blob(self) -> str:
        """Its name in the cache's `blobs/`."""
        return self.sha256 or self.git_sha1


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file that is not fetched, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit. What has an unusable name, size or hash is in `skipped`."""

    repository: str
    commit: str
    files: Mapping[str, RemoteFile]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class DownloadPlan:
    """What to fetch, in the order of paths."""

    files: tuple[RemoteFile, ...]
    skipped: tuple[Skipped, ...]

    @property
    def bytes(self) -> int:
        return sum({file.blob: file.size for file in self.files}.values())


def read_listing(repository: str, document: Mapping[str, Any]) -> Listing:
    """Check what the hub said.

    Args:
        document: {"commit": sha, "files": [[path, size, git sha1, sha256 or None], ...]}

    Raises:
        FetchFailed: It is no listing, or too long to be one of a model.
    """
    commit, entries = document.get("commit"), document.get("files")
    if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None or not isinstance(entries, list):
        raise FetchFailed(f"the hub gave no commit and list of files for {repository!r}", hint="try again later")
    if len(entries) > MAX_FILES:
        raise FetchFailed(f"{repository!r} has {len(entries)} files, more than the {MAX_FILES} of any model")
    files: dict[str, RemoteFile] = {}
    skipped = []
    for entry in entries:
        values: list[Any] = entry if isinstance(entry, list) and len(entry) == 4 else [None] * 4
        path, size, git_sha1, sha256 = values
        reason = _unusable_name(path) or _unusable_values(size, git_sha1, sha256)
        if reason is None and path in files:
            reason = "listed twice"
        if reason is not None:
            skipped.append(Skipped(clean_text(str(path), 300), reason))
        else:
            files[path] = RemoteFile(path, size, git_sha1, sha256)
    return Listing(repository, commit, files, tuple(skipped))


def parts_in_index(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the folders that model_index.json names, with the library of each part."""
    return {
        name: str(value[0])
        for name, value in index.items()
        if not name.startswith("_") and is_component(value) and value[0] is not None and value[1] is not None
    }


def plan_download(listing: Listing, index: Mapping[str, Any] | None, *, code: bool = False) -> DownloadPlan:
    """Decide about every file.

    Args:
        index: model_index.json, None where the repository has none: then it is a single weight file.
        code: Fetch Python sources too; in trust mode only.

    Raises:
        PickleRefused: A part has its weights only as a pickle.
        ModelIndexMissing: Neither an index nor a single weight file.
        ModelCorrupt: A needed file is too large, or its listing unusable.
    """
    wanted = {INDEX} if index is not None else {_single_file(listing), "config.json"}
    wanted |= {path for path in listing.files if _EVIDENCE.fullmatch(path)}
    parts = parts_in_index(index) if index is not None else {}
    duplicates = _duplicates(listing, parts)
    chosen: list[RemoteFile] = []
    skipped = list(listing.skipped)
    code_files = 0
    for path, file in sorted(listing.files.items()):
        folder, _, name = path.rpartition("/")
        reason: str | None = "not among the files that a pipeline opens"
        if name.endswith(".py"):
            code_files += 1
            reason = _code_reason(file, code_files) if code else "code, which is fetched in trust mode only"
        elif is_pickle_name(name):
            reason = "a pickle, which can run code when it is loaded"
        elif path in duplicates:
            reason = "a duplicate of weights that are fetched"
        elif path in wanted or (folder in parts and is_opened(name)):
            reason = None
        if reason is None and not name.endswith(".py"):
            _refuse_size(listing, file)
        if reason is None:
            chosen.append(file)
        else:
            skipped.append(Skipped(path, reason))
    _refuse_lacking(listing, parts, {file.path for file in chosen})
    return DownloadPlan(tuple(chosen), tuple(skipped))


def plan_code(listing: Listing) -> DownloadPlan:
    """Decide which sources are fetched, when only those are asked for."""
    chosen: list[RemoteFile] = []
    skipped = list(listing.skipped)
    for path, file in sorted(listing.files.items()):
        if not path.endswith(".py"):
            continue
        reason = _code_reason(file, len(chosen) + 1)
        if reason is None:
            chosen.append(file)
        else:
            skipped.append(Skipped(path, reason))
    return DownloadPlan(tuple(chosen), tuple(skipped))


def check_space(repository: str, missing_bytes: int, free_bytes: int, folder: str) -> None:
    """Raise DiskExceeded when what is missing does not fit, before anything is fetched."""
    needed = missing_bytes + DISK_RESERVE_BYTES
    if missing_bytes and needed > free_bytes:
        raise DiskExceeded(
            f"{repository} needs {missing_bytes / 1e9:.2f} GB more and {DISK_RESERVE_BYTES / 1e9:.2f} GB of reserve; "
            f"{folder} has {free_bytes / 1e9:.2f} GB left",
            hint="free some space, or set HF_HUB_CACHE to a folder on a larger disk",
        )


def _unusable_name(path: Any) -> str | None:
    if not isinstance(path, str) or not path or len(path) > MAX_PATH_CHARS:
        return "no name, or one that is too long"
    if not path.isprintable() or clean_text(path, MAX_PATH_CHARS) != path or "\\" in path:
        return "a name with control characters, or no text"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "a name that leads out of the repository"
    if any(part.startswith(".") for part in parts):
        return "a hidden file"
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_NAME_CHARS for part in parts):
        return "nested too deep, or a name that is too long"
    return None


def _unusable_values(size: Any, git_sha1: Any, sha256: Any) -> str | None:
    if type(size) is not int or size < 0:
        return "no size"
    if not isinstance(git_sha1, str) or _COMMIT.fullmatch(git_sha1) is None:
        return "no hash"
    if sha256 is not None and (not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None):
        return "no hash"
    return None


def _single_file(listing: Listing) -> str:
    weights = [path for path in listing.files if "/" not in path and path.endswith(_WEIGHTS)]
    if len(weights) == 1:
        return weights[0]
    have = f"{len(weights)} weight files" if weights else "no weight file"
    raise ModelIndexMissing(
        f"{listing.repository} has no {INDEX} and {have} at its top: it is not known what to fetch",
        hint="name a repository in diffusers layout, or download the file that you want and give its path",
    )


def _duplicates(listing: Listing, parts: Mapping[str, str]) -> set[str]:
    """Return weights that are there twice in a part: diffusers opens the shards of an index first, transformers the
    whole file (`_get_model_file` and `_get_resolved_checkpoint_files`)."""
    found: set[str] = set()
    for part, library in parts.items():
        weights = [
            path
            for path in listing.files
            if path.rpartition("/")[0] == part and is_opened(path.rpartition("/")[2]) and ".safetensors" in path
        ]
        shards = {path for path in weights if _SHARD.fullmatch(path) or path.endswith(".index.json")}
        whole = set(weights) - shards
        indexed = any(path.endswith(".index.json") for path in shards)
        if shards and whole:
            found |= whole if library != "transformers" and indexed else shards
    return found


def _code_reason(file: RemoteFile, number: int) -> str | None:
    if file.size > MAX_CODE_BYTES:
        return f"{file.size} bytes, more than any source needs"
    return f"more than {MAX_CODE_FILES} sources" if number > MAX_CODE_FILES else None


def _refuse_size(listing: Listing, file: RemoteFile) -> None:
    bound = MAX_WEIGHT_BYTES if file.path.endswith(_WEIGHTS) else MAX_SMALL_BYTES
    if file.size > bound:
        raise ModelCorrupt(f"{file.path} of {listing.repository} has {file.size} bytes; the limit is {bound}")


def _refuse_lacking(listing: Listing, parts: Iterable[str], chosen: set[str]) -> None:
    """Raise before gigabytes are fetched for a model that cannot be loaded from them."""
    unusable = {item.path: item.reason for item in listing.skipped}
    for part in parts:
        inside = [path for path in listing.files if path.startswith(f"{part}/")]
        if any(path.startswith(f"{part}/") and path.endswith(_WEIGHTS) for path in chosen):
            continue
        pickles = sorted(path for path in inside if is_pickle_name(path))
        if pickles:
            raise PickleRefused(
                f"the weights of {part!r} in {listing.repository} are a pickle ({pickles[0]}), "
                "which can run code when it is loaded",
                hint="use a repository with .safetensors weights",
            )
        for path in sorted(unusable):
            if path.startswith(f"{part}/") and path.endswith(_WEIGHTS):
                raise ModelCorrupt(f"{path} of {listing.repository} cannot be fetched: {unusable[path]}")
