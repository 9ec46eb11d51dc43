"""`batch status`: how a batch stands, from what lies in its folder. Writes nothing, needs no process of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.batch.progress import Progress, remaining_s
from wan_compat.policies.batch.records import Done, Learned, Paused
from wan_compat.protocol.errors import InvalidRequest, clean_text
from wan_compat.supervisor.batch.folder import BatchFolder
from wan_compat.supervisor.batch.journal import Follower
from wan_compat.supervisor.batch.leases import live_leases

STATUS_VERSION = 1
MAX_LISTED = 1000


def read_status(path: str) -> dict[str, Any]:
    """Return the status document of a batch's folder.

    Raises:
        InvalidRequest: No batch ran there.
        JournalUnusable: Its journal cannot be read.
    """
    folder = BatchFolder(path)
    plan = folder.read_plan()
    records = list(Follower().fresh(folder.journals()))
    progress, leases = Progress(records), live_leases(folder.leases)
    items = [_item(item) for item in plan["items"]]
    done = [item for item in items if progress.done(item["key"]) is not None]
    failed = [item for item in items if progress.failed(item["key"]) is not None]
    ended = {item["key"] for item in (*done, *failed)}
    running = [item for item in items if item["key"] in leases and item["key"] not in ended]
    seconds = [record.seconds for record in records if isinstance(record, Done) and record.seconds]
    waiting = len(items) - len(done) - len(failed) - len(running)
    disk = [record for record in records if isinstance(record, Paused)]
    return {
        "schema_version": STATUS_VERSION,
        "folder": clean_text(folder.path, 1000),
        "batch": clean_text(str(plan.get("batch", "")), 1000),
        "items": len(items),
        "done": len(done),
        "running": [_running(item, leases[item["key"]]) for item in running[:MAX_LISTED]],
        "failed": len(failed),
        "failures": [_failure(item, progress) for item in failed[:MAX_LISTED]],
        "waiting": waiting,
        "eta_s": remaining_s(seconds, waiting + len(running), len(running)) if running else None,
        "disk_full": bool(running or waiting) and bool(disk) and not max(disk, key=lambda record: record.at).room,
        "learned": [
            {"model": clean_text(record.model, 500), "fields": dict(record.fields), "key": record.key}
            for record in records
            if isinstance(record, Learned)
        ][-MAX_LISTED:],
    }


def _item(item: Any) -> dict[str, Any]:
    """Return an item of a plan, as we wrote it. The folder may have come from elsewhere: nothing is taken on trust."""
    if not isinstance(item, Mapping) or not isinstance(item.get("index"), int) or not isinstance(item.get("line"), int):
        raise InvalidRequest("the plan of this batch is damaged", hint="run the batch again")
    texts = {name: clean_text(str(item.get(name, "")), 300) for name in ("key", "output", "title", "model")}
    return {"index": item["index"], "line": item["line"], **texts}


def _running(item: dict[str, Any], lease: Any) -> dict[str, Any]:
    owner = lease.owner
    return {
        "index": item["index"],
        "output": item["output"],
        "title": item["title"],
        "host": owner.host if owner is not None else None,
        "pid": owner.pid if owner is not None else None,
        "heard_s_ago": round(max(0.0, time.time() - lease.renewed), 1),
    }


def _failure(item: dict[str, Any], progress: Progress) -> dict[str, Any]:
    record = progress.failed(item["key"])
    assert record is not None
    return {
        "index": item["index"],
        "line": item["line"],
        "output": item["output"],
        "code": clean_text(record.code, 200),
        "message": clean_text(record.message),
    }
