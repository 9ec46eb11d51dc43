"""The folder of a batch: videos, their sidecars and a report, and in `.batch` what the batch itself keeps.

OUT/0001-a-red-fox-7.mp4, .json     the videos and how each was made
OUT/report.html, summary.json       for people, for programs
OUT/.batch/plan.json                the items as the last run understood them
OUT/.batch/journal-I-of-N.jsonl     what happened, one file per shard
OUT/.batch/lock-I-of-N              held by the process that runs the shard
OUT/.batch/leases/                  who makes which item now
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.progress import Shard
from wan_compat.protocol.errors import BatchBusy, InvalidRequest, OutputNotWritable, clean_text
from wan_compat.supervisor.inspection.json_document import decode
from wan_compat.supervisor.inspection.problems import Defect
from wan_compat.supervisor.outputs import prepare_document

PLAN_VERSION = 1
MAX_PLAN_BYTES = 64 << 20
_MAX_LOCK_BYTES = 4096
_UNFINISHED = re.compile(r"(report\.html|summary\.json|plan\.json|journal-.{1,40}\.jsonl|\.room)\.[0-9a-f]{12}\.part")
# File systems without locks: leases alone divide the work there.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class BatchFolder:
    """Where a batch writes. `make` makes what is missing; until then it may not exist."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        asked = os.fspath(path)
        if not asked or "\0" in asked:
            raise InvalidRequest(f"{asked!r} is not the name of a folder")
        self.path = os.path.abspath(asked)
        self.own = os.path.join(self.path, ".batch")
        self.leases = os.path.join(self.own, "leases")
        self.plan = os.path.join(self.own, "plan.json")

    @property
    def exists(self) -> bool:
        return os.path.isdir(self.own)

    def journal(self, shard: Shard) -> str:
        return os.path.join(self.own, f"journal-{shard.name}.jsonl")

    def journals(self) -> list[str]:
        """Return the journals of all shards that ever ran here."""
        try:
            names = sorted(os.listdir(self.own))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputNotWritable(f"{self.own!r} cannot be read: {error.strerror}") from error
        return [
            os.path.join(self.own, name) for name in names if name.startswith("journal-") and name.endswith(".jsonl")
        ]

    def check(self) -> None:
        """Raise OutputNotWritable unless the folder can be written, or made."""
        place = self.path
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
            raise OutputNotWritable(f"{place!r} is not a folder that can be written", hint="choose another --out")
        for place in (self.own, self.leases):
            # A link would lead what is written out of the folder.
            if os.path.lexists(place) and (os.path.islink(place) or not os.path.isdir(place)):
                raise OutputNotWritable(f"{place!r} is not a folder", hint="move it away, or choose another --out")

    def make(self) -> None:
        try:
            os.makedirs(self.path, exist_ok=True)
            for place in (self.own, self.leases):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(place)
            sync_folder(self.own)
            sync_folder(self.path)
        except OSError as error:
            raise OutputNotWritable(f"{self.path!r} cannot be made: {error.strerror}") from error

    def output(self, name: str) -> str:
        return os.path.join(self.path, name)

    def write_plan(self, batch: str, items: Sequence[Item]) -> bool:
        """Write what the batch is made of, for `batch status`; return whether that was another one before.

        Raises:
            OutputNotWritable, DiskExceeded: It cannot be written.
        """
        document = {
            "version": PLAN_VERSION,
            "batch": clean_text(batch, 1000),
            "items": [
                {
                    "index": item.index,
                    "line": item.line,
                    "key": item.key,
                    "output": item.output,
                    "seed": item.seed,
                    "title": item.title,
                    "model": clean_text(item.request.model, 500),
                }
                for item in items
            ],
        }
        with contextlib.suppress(InvalidRequest):
            if self.read_plan() == document:
                return False
        write_json(self.plan, document)
        return True

    def read_plan(self) -> Mapping[str, Any]:
        """Return what the last run wrote.

        Raises:
            InvalidRequest: No batch ran here, or what is there is not ours.
        """
        try:
            descriptor = os.open(self.plan, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                raw = file.read(MAX_PLAN_BYTES + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except FileNotFoundError as error:
            raise InvalidRequest(
                f"no batch ran in {self.path!r}", hint="name the folder that was --out of `wan-compat batch run`"
            ) from error
        except OSError as error:
            raise InvalidRequest(f"{self.plan!r} cannot be read: {error.strerror}") from error
        try:
            document = decode(raw, os.path.basename(self.plan), max_values=2_000_000).document
        except Defect as defect:
            raise InvalidRequest(f"{self.plan!r} is not ours: {defect.finding.message}") from defect
        if document.get("version") != PLAN_VERSION or not isinstance(document.get("items"), list):
            raise InvalidRequest(f"{self.plan!r} is of another version", hint="run the batch again, or update")
        return document


def write_json(path: str, document: Mapping[str, Any]) -> None:
    """Write a document, whole or not at all, replacing an older one."""
    data = json.dumps(document, indent=2, ensure_ascii=True).encode("ascii")
    with prepare_document(path, overwrite=True) as target:
        try:
            with open(target.part_path, "wb") as file:
                file.write(data + b"\n")
        except OSError as error:
            raise OutputNotWritable(f"{path!r} cannot be written: {error.strerror}") from error
        target.commit()


@contextlib.contextmanager
def held(folder: BatchFolder, shard: Shard) -> Iterator[None]:
    """Hold a shard of a batch, alone on this machine and wherever its file system knows locks.

    The kernel drops the lock when its holder dies, in whatever way; the file stays, since removing it would let two
    processes hold two files of one name.

    Raises:
        BatchBusy: Another process has it; the message names its id.
    """
    path = os.path.join(folder.own, f"lock-{shard.name}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise OutputNotWritable(f"{path!r} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _busy(folder, shard, os.pread(descriptor, _MAX_LOCK_BYTES, 0)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with contextlib.suppress(OSError):  # a full disk: only the name of the owner is lost by that
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner + b"\n", 0)
        yield
    finally:
        os.close(descriptor)


def is_alone(folder: BatchFolder, shard: Shard) -> bool:
    """Whether no other shard of this folder is held now, as far as locks tell."""
    for name in os.listdir(folder.own):
        if not name.startswith("lock-") or name == f"lock-{shard.name}":
            continue
        try:
            descriptor = os.open(
                os.path.join(folder.own, name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
    return True


def sweep(folder: BatchFolder) -> None:
    """Remove what a killed run left of documents that it was writing. For who is alone."""
    for place in (folder.path, folder.own):
        for name in os.listdir(place):
            if _UNFINISHED.fullmatch(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(place, name))


def _busy(folder: BatchFolder, shard: Shard, raw: bytes) -> BatchBusy:
    try:
        owner = json.loads(raw)
        pid, host = int(owner["pid"]), clean_text(str(owner["host"]), 200)
    except (ValueError, TypeError, KeyError):
        pid, host = 0, ""
    who = f"process {pid} on {host}" if pid else "another process"
    part = f", part {shard.number}/{shard.count}," if shard.count > 1 else ""
    return BatchBusy(
        f"{folder.path!r}{part} is being worked on by {who}",
        hint=f"wait for it, end it (kill {pid}), or give several runs a --shard each"
        if pid
        else "wait for it, or give several runs a --shard each",
        details={"pid": pid, "host": host},
    )


def sync_folder(path: str) -> None:
    """Make names in a folder durable, where its file system knows that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
