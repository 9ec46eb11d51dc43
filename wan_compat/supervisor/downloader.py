"""Fetching a model from a hub into the local Hugging Face cache, pinned to one commit, admitted files only.

    list      revision -> commit, and every file with size and hash           one request, in a process of its own
    index     model_index.json alone: what does it want? code, pickles, nonsense end it here
    plan      which files (policies/download.py), and whether they fit on the disk
    fetch     each file by the commit, going on where an earlier try stopped  in a process of its own
    check     each file against the listing's hash, before it gets a name in the cache
    link      the snapshot, then refs/<revision>, when everything is there

Nothing that was fetched is executed or imported. Interrupt it at any moment: what came is kept, and is no model yet.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan_compat.policies.download import (
    INDEX,
    DownloadPlan,
    Listing,
    RemoteFile,
    Skipped,
    check_space,
    plan_code,
    plan_download,
    read_listing,
)
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.models import raise_first
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import FetchFailed, InvalidRequest, ModelCorrupt, ModelNotFound, RefusedByPolicy
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.hub_cache import HubRepository
from wan_compat.supervisor.hub_process import LIST_TIMEOUT_S, STALL_BYTES, Hub, run_hub, user_hub
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.json_document import read_document
from wan_compat.supervisor.inspection.locate import Place, hub_cache, locate
from wan_compat.supervisor.inspection.problems import Defect

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
# Of the listing; files have the retries of huggingface_hub.
LIST_WAITS_S = (1.0, 3.0)
# Descriptors handed to one program: far below what every system allows (1024).
FILES_AT_ONCE = 128

# Called with the path of the file under way, bytes done and bytes in all.
DownloadProgress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """A repository at one commit in the cache. `fetched_bytes` came over the network now, the rest was there."""

    repository: str
    commit: str
    path: str
    source_url: str
    files: tuple[RemoteFile, ...]
    skipped: tuple[Skipped, ...]
    fetched_bytes: int


def ensure_model(
    path: str, policy: Policy, *, code: bool = False, progress: DownloadProgress | None = None
) -> tuple[Place, Downloaded | None]:
    """Return where the model `path` is, and fetch it first if it is a hub id that is not in the cache.

    What is there stays as it is, at its commit, and no request is made.

    Raises:
        As `locate` for what is no hub id, and as `download_model`.
    """
    try:
        return locate(path), None
    except ModelNotFound:
        if not is_hub_id(path):
            raise
    downloaded = download_model(path, policy, code=code, progress=progress)
    return locate(downloaded.path), downloaded


def is_hub_id(path: str) -> bool:
    return _HUB_ID.fullmatch(path) is not None and "--" not in path and ".." not in path


def download_model(
    repository: str,
    policy: Policy,
    *,
    revision: str = "main",
    code: bool = False,
    progress: DownloadProgress | None = None,
    hub: Hub | None = None,
) -> Downloaded:
    """Fetch what a pipeline opens of a repository.

    Args:
        revision: A branch, tag or commit; the first two are resolved to a commit before anything is fetched.
        code: Python sources too. Only where the policy allows trust mode; they are not executed.
        hub: None is the one that the user's environment names.

    Raises:
        RefusedByPolicy: Downloads, or code, are switched off.
        RemoteCodeRefused, PickleRefused: Without `code`: it cannot be used in safe mode, and was not fetched.
        FetchFailed, ModelNotFound, WorkerExtraMissing, SandboxEntryFailed: See hub_process.py.
        ModelCorrupt: What came is not what the hub lists.
        DiskExceeded: It does not fit.
        EnvironmentLacks: The cache cannot be written.
    """
    _refuse_by_policy(repository, revision, policy, code=code)
    fetcher = _Fetcher(hub or user_hub(), repository, progress)
    try:
        listing = fetcher.list_files(revision)
        index: Mapping[str, Any] | None = None
        if INDEX in listing.files:
            fetcher.fetch(listing, [listing.files[INDEX]])
            index = fetcher.read_json(listing.files[INDEX])
            if not code:
                raise_first(*_as_facts(repository, index))
        plan = plan_download(listing, index, code=code)
        return fetcher.complete(listing, plan, revision)
    finally:
        fetcher.close()


def download_code(
    repository: str,
    policy: Policy,
    *,
    revision: str,
    progress: DownloadProgress | None = None,
    hub: Hub | None = None,
    cache: str | None = None,
) -> Downloaded:
    """Fetch a repository's Python sources alone, into the snapshot of their commit. Raises as `download_model`.

    Args:
        cache: A folder in the layout of a Hugging Face cache; None is the user's.
    """
    _refuse_by_policy(repository, revision, policy, code=True)
    fetcher = _Fetcher(hub or user_hub(), repository, progress, cache)
    try:
        listing = fetcher.list_files(revision)
        return fetcher.complete(listing, plan_code(listing), listing.commit)
    finally:
        fetcher.close()


def _refuse_by_policy(repository: str, revision: str, policy: Policy, *, code: bool) -> None:
    if not is_hub_id(repository) or _REVISION.fullmatch(revision) is None or ".." in revision:
        raise InvalidRequest(f"{repository!r} at {revision!r} names no repository of a hub", hint="owner/name")
    if not policy.allow_downloads:
        raise RefusedByPolicy(
            f"{repository} was not fetched: downloads are switched off (allow_downloads = false)",
            hint="allow them in your user configuration, or fetch it with another tool and give its folder",
        )
    if code and policy.mode is not Mode.TRUST:
        raise RefusedByPolicy(
            f"the code of {repository} was not fetched: the policy allows safe mode alone",
            hint="use a repository whose parts are in diffusers and transformers",
        )


def _as_facts(repository: str, index: Mapping[str, Any]) -> tuple[ModelFacts, Any]:
    facts = ModelFacts(root=repository, files={}, documents={INDEX: index}, weights={})
    return facts, judge_documents(facts)


class _Fetcher:
    """One repository under way."""

    def __init__(self, hub: Hub, repository: str, progress: DownloadProgress | None, cache: str | None = None) -> None:
        self._hub = hub
        self._repository = repository
        self._progress = progress
        self._cache = HubRepository(cache or hub_cache(), repository)
        self._fetched_bytes = 0

    def close(self) -> None:
        self._cache.close()

    def list_files(self, revision: str) -> Listing:
        heard: list[dict[str, Any]] = []

        def hear(event: dict[str, Any]) -> bool:
            heard[:] = [event]
            return True

        order = {"verb": "list", "repository": self._repository, "revision": revision}
        for wait_s in (*LIST_WAITS_S, None):
            try:
                run_hub(self._hub, order, hear, timeout_s=LIST_TIMEOUT_S)
                break
            except FetchFailed:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
        return read_listing(self._repository, heard[0] if heard else {})

    def fetch(self, listing: Listing, files: Sequence[RemoteFile]) -> None:
        """Fetch and check what is missing of `files`."""
        by_blob = {file.blob: file for file in files}
        missing = [file for file in by_blob.values() if not self._cache.has(file)]
        present = sum(self._partial_size(file) for file in missing)
        wanted = sum(file.size for file in missing)
        check_space(self._repository, wanted - present, _free_bytes(self._cache.path), self._cache.path)
        for start in range(0, len(missing), FILES_AT_ONCE):
            pending = missing[start : start + FILES_AT_ONCE]
            again = self._fetch_once(listing, pending, wanted)
            if again:  # each began in an earlier try, whose bytes were wrong: from the start, and only once
                again = self._fetch_once(listing, again, wanted)
            if again:
                raise _wrong(again[0], listing)

    def read_json(self, file: RemoteFile) -> Mapping[str, Any]:
        path = os.path.join(self._cache.path, "blobs", file.blob)
        info = os.lstat(path)
        fact = FileFact(file.path, path, info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns)
        try:
            return read_document(fact, Budget()).document
        except Defect as defect:
            raise defect.finding.to_error(self._repository) from defect

    def complete(self, listing: Listing, plan: DownloadPlan, revision: str) -> Downloaded:
        self.fetch(listing, plan.files)
        for file in plan.files:
            self._cache.link(listing.commit, file)
        if plan.files:
            self._cache.name_commit(revision, listing.commit)
        return Downloaded(
            repository=self._repository,
            commit=listing.commit,
            path=self._cache.snapshot(listing.commit),
            source_url=f"{self._hub.endpoint}/{self._repository}/tree/{listing.commit}",
            files=plan.files,
            skipped=plan.skipped,
            fetched_bytes=self._fetched_bytes,
        )

    def _fetch_once(self, listing: Listing, files: Sequence[RemoteFile], wanted: int) -> list[RemoteFile]:
        """Fetch files and name those that are right; return those to be fetched again from their first byte."""
        opened: list[int] = []
        try:
            for file in files:
                opened.append(self._cache.open_partial(file))
            sizes = [os.fstat(descriptor).st_size for descriptor in opened]
            order = {
                "verb": "fetch",
                "repository": self._repository,
                "commit": listing.commit,
                "files": [
                    {"path": file.path, "size": file.size, "descriptor": descriptor}
                    for file, descriptor in zip(files, opened, strict=True)
                ],
            }
            run_hub(self._hub, order, _Ear(files, sizes, wanted, self._progress), descriptors=opened)
            again: list[RemoteFile] = []
            for file, descriptor, size in zip(files, opened, sizes, strict=True):
                if self._cache.hash_matches(self._cache.partial(file), file):
                    self._cache.complete(file)
                    self._fetched_bytes += file.size - size
                    continue
                os.ftruncate(descriptor, 0)
                if not size:
                    self._cache.discard(file)
                    raise _wrong(file, listing)
                again.append(file)
            return again
        finally:
            for file, descriptor in zip(files, opened, strict=False):
                if os.fstat(descriptor).st_size == 0 and os.fstat(descriptor).st_nlink:
                    self._discard_empty(file)
                os.close(descriptor)

    def _discard_empty(self, file: RemoteFile) -> None:
        if file.size:  # a file of no bytes is complete when it is empty
            self._cache.discard(file)

    def _partial_size(self, file: RemoteFile) -> int:
        try:
            return min(os.lstat(self._cache.partial(file)).st_size, file.size)
        except OSError:
            return 0


class _Ear:
    """Hears of files under way; only what comes forward counts as progress."""

    def __init__(
        self, files: Sequence[RemoteFile], sizes: Sequence[int], wanted: int, progress: DownloadProgress | None
    ) -> None:
        self._files = files
        self._done = list(sizes)
        self._wanted = wanted
        self._progress = progress
        self._credited = sum(sizes)
        self._finished: set[int] = set()

    def __call__(self, event: dict[str, Any]) -> bool:
        number, done = event.get("file"), event.get("done")
        if type(number) is not int or not 0 <= number < len(self._files):
            return False
        file = self._files[number]
        if event.get("event") == "done":
            self._done[number] = file.size
        elif event.get("event") == "bytes" and type(done) is int and 0 <= done <= file.size:
            self._done[number] = done
        total = sum(self._done)
        if self._progress is not None:
            self._progress(file.path, total, self._wanted)
        # Once per file: saying "done" again and again is no progress.
        finished = event.get("event") == "done" and number not in self._finished
        moved = finished or total - self._credited >= STALL_BYTES
        if finished:
            self._finished.add(number)
        if moved:
            self._credited = total
        return moved


def _wrong(file: RemoteFile, listing: Listing) -> ModelCorrupt:
    return ModelCorrupt(
        f"{file.path} of {listing.repository} at {listing.commit[:12]} came with other bytes than the hub's hash says",
        hint="try again; if it stays so, the hub or somebody on the way to it is changing files",
    )


def _free_bytes(folder: str) -> int:
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder) or "/"
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
