"""What a supervisor's log says: one document for each thing that happened, with ids, a level and a code.

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "event": "job_done", "supervisor": "...", "pid": 4711,
     "job": "j3", "worker": "w1", "model": "...", "code": null, "message": null, "data": {...}}

Redacted like a report that is sent to somebody (policies/redaction.py): home folders and tokens go, text that a model
or a worker said is cleaned, and of prompts stays their length unless they are asked for; names that were made of one
lose that part (policies/prompt_traces.py). Progress is not logged: it would be most of the file, and the phases say
when what began.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wan_compat._version import __version__
from wan_compat.policies.prompt_traces import without_prompt
from wan_compat.policies.redaction import redact, redact_text
from wan_compat.protocol.errors import JobCancelled
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.log_file import LogFile
from wan_compat.supervisor.observers import Observer

if TYPE_CHECKING:
    from wan_compat.protocol.status import Note
    from wan_compat.supervisor.client import Supervisor
    from wan_compat.supervisor.job import Job

# Of a document on its way to the log's thread; it is not written.
_PROMPT = "_prompt"

_NOT_LOGGED = (ev.Progress, ev.Preview, ev.LatentPreview)

# Of an event: its name in the log, and its level. Others are logged by the name of their class, as "info".
_EVENTS: dict[type, tuple[str, str]] = {
    ev.PhaseStarted: ("phase_started", "info"),
    ev.Started: ("worker_confined", "info"),
    ev.FirstFrame: ("first_frame", "info"),
    ev.Warned: ("warned", "warning"),
    ev.Incident: ("incident", "error"),
    ev.Recovering: ("recovering", "warning"),
    ev.Recovered: ("recovered", "warning"),
    ev.Encoded: ("encoded", "info"),
    ev.Unusual: ("unusual", "warning"),
}


class JobLog(Observer):
    """Writes a supervisor's jobs and notes into a file.

    Args:
        log_file: The file (log_file.py), made or appended to.
        prompts: Whether prompts are written out.

    Raises:
        OutputNotWritable: The file cannot be used.
    """

    name = "the log"

    def __init__(
        self, supervisor: Supervisor, log_file: str | os.PathLike[str], *, prompts: bool = False, **rotation: int
    ) -> None:
        self._ids = {"supervisor": supervisor.id, "pid": os.getpid()}
        self._prompts = prompts
        self._file = LogFile(log_file, self._redacted, **rotation)
        data = {"version": __version__, "mode": supervisor.mode.value, "workers": supervisor.workers}
        self._write("info", "supervisor_started", data=data | {"program": supervisor.program})

    def queued(self, job: Job[Any]) -> None:
        request = job.request
        data = {
            name: value
            for name in ("prompt", "negative_prompt", "seed", "width", "height", "num_frames", "output")
            if (value := getattr(request, name, None)) is not None
        }
        ticket = job.ticket
        data |= {"mode": request.mode.value, "priority": ticket.priority, "group": ticket.group, "label": ticket.label}
        self._write("info", "job_queued", job, data=data)

    def event(self, job: Job[Any], event: ev.Event) -> None:
        if isinstance(event, _NOT_LOGGED):
            return
        if isinstance(event, ev.Finished):
            self._write("info", "job_done", job, data=_result(event.result))
        elif isinstance(event, ev.Ended):
            error = event.error
            cancelled = isinstance(error, JobCancelled)
            level, name = ("info", "job_cancelled") if cancelled else ("error", "job_failed")
            self._write(level, name, job, code=error.code, message=error.message, data={"fixes": list(error.fixes)})
        else:
            name, level = _EVENTS.get(type(event), (type(event).__name__.lower(), "info"))
            data = dataclasses.asdict(event)
            self._write(level, name, job, message=data.pop("message", None), data=data)

    def note(self, note: Note) -> None:
        if note.level == "error" and note.job is not None:
            return  # a failed job, which its own last event tells with more
        document = self._document(note.level, "note", code=note.code, message=note.text)
        self._file.write(document | {"job": note.job, "worker": note.worker})

    def close(self) -> None:
        self._write("info", "supervisor_closed")
        self._file.close()

    def _write(self, level: str, event: str, job: Job[Any] | None = None, **rest: Any) -> None:
        self._file.write(self._document(level, event, job, **rest))

    def _document(
        self,
        level: str,
        event: str,
        job: Job[Any] | None = None,
        *,
        code: str | None = None,
        message: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "time": now,
            "level": level,
            "event": event,
            **self._ids,
            "job": None if job is None else job.id,
            "worker": None if job is None else job.status().worker,
            "model": None if job is None else job.request.model,
            "code": code,
            "message": message,
            "data": dict(data or {}),
            _PROMPT: None if job is None else getattr(job.request, "prompt", None),
        }

    def _redacted(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the document as it is written; runs in the log's thread."""
        home = os.path.expanduser("~")
        written = {name: value for name, value in document.items() if name != _PROMPT}
        prompt = document.get(_PROMPT)
        if prompt and not self._prompts:
            written |= {name: without_prompt(written[name], prompt) for name in ("message", "data")}
        redacted: dict[str, Any] = redact(written, home)
        if self._prompts:
            data = document.get("data", {})
            prompts = {name: data[name] for name in ("prompt", "negative_prompt") if isinstance(data.get(name), str)}
            redacted["data"] |= {name: redact_text(text, home) for name, text in prompts.items()} if prompts else {}
        elif prompt and "prompt" in redacted["data"]:
            redacted["data"]["prompt"] = f"<{len(prompt)} characters>"
        return redacted


def _result(result: Any) -> dict[str, Any]:
    """Return what the log says of a result: where it is and what it took."""
    if not isinstance(result, VideoGenerationResult):
        return {"output": result.output, "seconds": result.total_s, "bytes": result.written_bytes}
    output, params = result.output, result.metadata.generation_params
    more = [one.output.path for one in result.others if one.output is not None]
    return {
        **({"others": more} if more else {}),
        "output": None if output is None else output.path,
        "bytes": None if output is None else output.bytes,
        "seed": params.get("seed"),
        "seconds": round(result.generation_time, 3),
        "timings": {name: round(seconds, 3) for name, seconds in dataclasses.asdict(result.timings).items()},
        "tier": result.sandbox.tier,
        "memory_bytes": result.memory_used,
        "warnings": list(result.warnings),
        "recovery": [dict(step) for step in result.recovery],
    }
