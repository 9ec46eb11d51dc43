"""Talks to a hub, in a process of its own that can do nothing else: `python -I -m wan_compat.workers.hub_download`.

    stdin    one JSON order: {"verb": "list", ...} or {"verb": "fetch", ...}; see `_list` and `_fetch`
    stdout   JSON lines: {"event": "listing" | "bytes" | "done" | "error", ...}
    files    descriptors that the supervisor opened; what is in them already is gone on from

It is told and decides nothing. It cannot open a file to write, so a server that took it over could hand back wrong
bytes, which the supervisor holds against the hashes of the listing. A token, where the user has one, is in HF_TOKEN.

huggingface_hub gives the requests, their retries and redirects. Its own cache is not used: since 2.0 it starts an
interrupted file from the beginning, under a name that nobody finds again (`_download_to_tmp_and_move`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, BinaryIO

MAX_ORDER_BYTES = 4 << 20
MAX_MESSAGE_CHARS = 500
REQUEST_TIMEOUT_S = 20.0
PROGRESS_PERIOD_S = 0.2
CHUNK_BYTES = 64 << 10

_KINDS = {
    "RepositoryNotFoundError": "not_found",
    "RevisionNotFoundError": "not_found",
    "RemoteEntryNotFoundError": "file_not_found",
    "EntryNotFoundError": "file_not_found",
    "GatedRepoError": "gated",
    "DisabledRepoError": "gated",
    "OfflineModeIsEnabled": "offline",
    "FileTooLong": "too_long",
    "ImportError": "library_missing",
    "ModuleNotFoundError": "library_missing",
    "SandboxEntryFailed": "not_confined",
}


class FileTooLong(Exception):
    """The server sent more than it had said."""


class BoundedFile:
    """The file that `http_get` writes to: no longer than agreed, and it tells how far it has come."""

    def __init__(self, file: BinaryIO, number: int, size: int) -> None:
        self._file = file
        self._number = number
        self._size = size
        self._told_at = 0.0

    def write(self, chunk: bytes) -> int:
        end = self._file.tell() + len(chunk)
        if end > self._size:
            raise FileTooLong(f"more than the {self._size} bytes that were listed")
        written = self._file.write(chunk)
        if time.monotonic() - self._told_at > PROGRESS_PERIOD_S:
            self._told_at = time.monotonic()
            _tell({"event": "bytes", "file": self._number, "done": end})
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def truncate(self) -> int:
        return self._file.truncate()


def main() -> int:
    """Carry out the one order on stdin. Returns the exit status: 0, or 1 after an `error` event."""
    try:
        order = json.loads(sys.stdin.buffer.read(MAX_ORDER_BYTES))
        from wan_compat.sandbox.network_client import confine

        confine(
            keep=[file["descriptor"] for file in order.get("files", ())],
            read_paths=order["read_paths"],
            file_size_bytes=max((file["size"] for file in order.get("files", ())), default=0),
            parent_pid=order["parent_pid"],
        )
        if order["verb"] == "list":
            _list(order)
        else:
            _fetch(order)
    except Exception as error:  # noqa: BLE001 - whatever it was, the supervisor shall hear of it and not guess
        _tell({"event": "error", "kind": _kind(error), "message": _message(error)})
        return 1
    return 0


def _list(order: dict[str, Any]) -> None:
    """Resolve a revision to its commit and list its files: one request.

    Order: `repository`, `revision`, `endpoint`. Event: {"commit", "files": [[path, size, git sha1, sha256], ...]}.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=order["endpoint"], token=_token() or False)
    info = api.model_info(
        order["repository"], revision=order["revision"], files_metadata=True, timeout=REQUEST_TIMEOUT_S
    )
    files = [
        [item.rfilename, item.size, item.blob_id, item.lfs.sha256 if item.lfs else None] for item in info.siblings or ()
    ]
    _tell({"event": "listing", "commit": info.sha, "files": files})


def _fetch(order: dict[str, Any]) -> None:
    """Fetch files at one commit, one after the other, each into its descriptor.

    Order: `repository`, `commit`, `endpoint`, `files` [{"path", "size", "descriptor"}].
    Events: {"event": "bytes", "file": number, "done": bytes}, {"event": "done", "file": number}.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    # The library's 10 MB would be lost with every interruption, and hide from us that a slow server comes forward.
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    headers = build_hf_headers(token=_token() or False, library_name="wan-compat")
    for number, file in enumerate(order["files"]):
        url = hf_hub_url(order["repository"], file["path"], revision=order["commit"], endpoint=order["endpoint"])
        with open(file["descriptor"], "r+b") as opened:
            present = opened.seek(0, os.SEEK_END)
            if present < file["size"]:
                http_get(
                    url,
                    BoundedFile(opened, number, file["size"]),  # type: ignore[arg-type]  # it writes, seeks and truncates
                    resume_size=present,
                    headers=headers,
                    expected_size=file["size"],
                )
            opened.flush()
            os.fsync(opened.fileno())
        _tell({"event": "done", "file": number})


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None


def _kind(error: Exception) -> str:
    for base in type(error).__mro__:
        if base.__name__ in _KINDS:
            return _KINDS[base.__name__]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "gated"
    return "network"


def _message(error: Exception) -> str:
    text = f"{type(error).__name__}: {getattr(error, 'message', None) or error}"
    token = _token()
    # Kept out of whatever a library may quote. Errors name addresses, never headers; this is for the day one does.
    return (text.replace(token, "***") if token else text)[:MAX_MESSAGE_CHARS]


def _tell(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
