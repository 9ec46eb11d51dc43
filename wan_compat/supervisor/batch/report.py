"""What a batch leaves for people and programs: report.html and summary.json, written anew as it goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from wan_compat.policies.batch.items import Item
from wan_compat.policies.batch.progress import Progress
from wan_compat.protocol.errors import WanCompatError, clean_text
from wan_compat.supervisor.batch.folder import BatchFolder, write_json

SUMMARY_VERSION = 1
MAX_LISTED = 1000  # failures of a summary
# Between two reports of a batch that runs.
PERIOD_S = 10.0
_POSTERS_S = 1.0
_LAST_POSTERS_S = 10.0


def summary(
    folder: BatchFolder, batch: str, items: Sequence[Item], progress: Progress, run: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the document: how the batch stands, over all runs and shards, and what `run` says about this one."""
    done = [item for item in items if progress.done(item.key) is not None]
    failed = [item for item in items if progress.failed(item.key) is not None]
    return {
        "schema_version": SUMMARY_VERSION,
        "kind": "wan-compat batch",
        "batch": clean_text(batch, 1000),
        "folder": clean_text(folder.path, 1000),
        "items": len(items),
        "done": len(done),
        "failed": len(failed),
        "waiting": len(items) - len(done) - len(failed),
        "failures": [_failure(item, progress) for item in failed[:MAX_LISTED]],
        "report": os.path.join(folder.path, "report.html"),
        **({"run": dict(run)} if run is not None else {}),
    }


def _failure(item: Item, progress: Progress) -> dict[str, Any]:
    record = progress.failed(item.key)
    assert record is not None
    return {
        "index": item.index,
        "line": item.line,
        "output": progress.output(item.key) or item.output,
        "code": clean_text(record.code, 200),
        "message": clean_text(record.message),
        "attempts": record.attempt,
        "kept": None if record.kept is None else clean_text(record.kept),
    }


class Reporter:
    """Writes the reports of one run, at most every PERIOD_S, in a thread that no job waits for.

    Args:
        mode: "safe" or "trust", for the page.
    """

    def __init__(self, folder: BatchFolder, batch: str, items: Sequence[Item], progress: Progress, mode: str) -> None:
        self._folder, self._batch, self._items, self._progress = folder, batch, items, progress
        self._mode = mode
        self._thread: threading.Thread | None = None
        self._last = 0.0
        self.warning: str | None = None

    def changed(self) -> None:
        """An item has ended."""
        busy = self._thread is not None and self._thread.is_alive()
        if not busy and time.monotonic() - self._last >= PERIOD_S:
            self._last = time.monotonic()
            entries = self._entries()
            self._thread = threading.Thread(target=self._write, args=(entries, _POSTERS_S), daemon=True)
            self._thread.start()

    def finish(self, is_another: bool, run: Mapping[str, Any]) -> dict[str, Any]:
        """Write both a last time; return the summary. What cannot be written is a warning: the videos stand.

        Args:
            is_another: The items are others than those of the last run. If they are not, and nothing happened since it
                was written, the page stays: its posters take a while.
        """
        if self._thread is not None:
            self._thread.join()
        if is_another or self._is_older_than_journals():
            self._write(self._entries(), _LAST_POSTERS_S)
        document = summary(self._folder, self._batch, self._items, self._progress, run)
        try:
            write_json(os.path.join(self._folder.path, "summary.json"), document)
        except WanCompatError as error:
            self.warning = error.message
        return document

    def _is_older_than_journals(self) -> bool:
        try:
            written = os.stat(os.path.join(self._folder.path, "report.html")).st_mtime_ns
            return any(os.stat(path).st_mtime_ns > written for path in self._folder.journals())
        except OSError:
            return True

    def _write(self, entries: list[Any], posters_s: float) -> None:
        from wan_compat.supervisor.gallery import write_gallery

        try:
            title = os.path.basename(self._batch) or "Batch"
            write_gallery(self._folder.path, entries, title=clean_text(title, 200), poster_time_s=posters_s)
            self.warning = None  # of an earlier one, when the disk was full
        except (WanCompatError, OSError) as error:
            self.warning = f"the report could not be written: {error}"

    def _entries(self) -> list[Any]:
        return [self._entry(item) for item in self._items]

    def _entry(self, item: Item) -> Any:
        from wan_compat.policies.encoding import FORMATS, suffix_of
        from wan_compat.supervisor.gallery import GalleryEntry

        request, done, failed = item.request, self._progress.done(item.key), self._progress.failed(item.key)
        output = self._progress.output(item.key) or item.output
        suffix = suffix_of(output, request.format).lower()
        form = next((name for name, form in FORMATS.items() if suffix in form.suffixes), request.format)
        shared: dict[str, Any] = {
            "index": item.index,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": item.seed,
            "model": request.model,
            "mode": self._mode,
            "format": form,
            "label": output,
        }
        if done is not None:
            return GalleryEntry(
                state="done",
                output=output,
                width=done.width or None,
                height=done.height or None,
                num_frames=done.num_frames or None,
                fps=done.fps or None,
                seconds=done.seconds,
                timings=done.timings,
                tier=done.tier or None,
                recovery=done.recovery,
                **shared,
            )
        if failed is not None:
            return GalleryEntry(
                state="failed", error_code=failed.code, error=failed.message, seconds=failed.seconds, **shared
            )
        return GalleryEntry(
            state="waiting", width=request.width, height=request.height, num_frames=request.num_frames, **shared
        )
