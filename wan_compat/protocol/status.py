"""What a supervisor says about itself: its workers, its jobs, its queue and what happened lately.

One `SupervisorStatus` is what `Supervisor.status()` returns, what crosses the control socket (docs/protocol.md) and
what `wan-compat monitor --once --json` prints. Every list is bounded, so that a status has a greatest size; text in it
comes from users, models and workers, and passes `clean_text` before anybody shows it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from wan_compat.protocol.base import Count, Seconds, Value

STATUS_VERSION: Literal[1] = 1
MAX_WORKERS = 64
MAX_LISTED_JOBS = 200  # of the running, waiting and finished ones each
MAX_NOTES = 100

Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Text = Annotated[str, Field(max_length=500)]
Share = Annotated[float, Field(ge=0, le=10_000)]

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
WorkerActivity = Literal["starting", "busy", "idle", "ending"]
NoteLevel = Literal["info", "warning", "error"]


class WorkerStatus(Value):
    """One worker process.

    Args:
        cpu_percent: Of one core, since the status before; None for the first.
        vram_bytes: None where there is no GPU.
        unusual: What the watch over consumption says now ("computes without progress", "floods its log", ...).
    """

    id: Id
    pid: Count
    activity: WorkerActivity
    mode: Literal["safe", "trust"]
    tier: Literal["A", "B", "C", "D", "E"]
    model: Text
    job: Id | None = None
    rss_bytes: Count = 0
    memory_limit_bytes: Count = 0
    vram_bytes: Count | None = None
    cpu_percent: Share | None = None
    started_unix_s: Seconds = 0.0
    jobs_done: Count = 0
    unusual: tuple[Text, ...] = Field(default=(), max_length=8)


class JobStatus(Value):
    """One job. `attempt` counts from 1; `progress` is of the phase; `eta_s` until the end of the phase."""

    id: Id
    state: JobState
    model: Text
    prompt: Text = ""
    label: Text = ""
    group: Text = ""
    priority: int = Field(default=0, ge=-100, le=100)
    mode: Literal["safe", "trust"] = "safe"
    worker: Id | None = None
    phase: Annotated[str, Field(max_length=32)] = ""
    step: Count = 0
    total: Count = 0
    rate_s: Seconds | None = None
    eta_s: Seconds | None = None
    attempt: Count = 1
    video: Count = 0
    num_videos: Count = 1
    output: Text | None = None
    submitted_unix_s: Seconds = 0.0
    started_unix_s: Seconds | None = None
    ended_unix_s: Seconds | None = None
    error_code: Annotated[str, Field(max_length=64)] | None = None
    error: Text | None = None


class Note(Value):
    """Something that happened: a refusal, a recovery, a worker's death, unusual consumption."""

    at_unix_s: Seconds
    level: NoteLevel
    text: Text
    code: Annotated[str, Field(max_length=64)] | None = None
    job: Id | None = None
    worker: Id | None = None


class MachineStatus(Value):
    ram_total_bytes: Count = 0
    ram_available_bytes: Count = 0
    vram_total_bytes: Count | None = None
    vram_used_bytes: Count | None = None
    cpu_count: Count = 1
    load_1: Seconds = 0.0


class SupervisorStatus(Value):
    """Everything at once.

    Args:
        id: Name of its runtime folder, unique on this machine.
        program: What it is part of, such as "wan-compat batch run" or "python app.py".
        serves: Whether other programs may submit to it.
        queued_count: Of all waiting jobs; `queued` lists the first ones in the order in which they will run.
        ended, notes: The last ones, newest first.
        read_only: Whether it takes orders (cancel, kill, pause) through its control socket.
    """

    schema_version: Literal[1] = STATUS_VERSION
    id: Id
    pid: Count
    program: Text
    version: Annotated[str, Field(max_length=64)]
    mode: Literal["safe", "trust"]
    started_unix_s: Seconds
    now_unix_s: Seconds
    serves: bool = False
    paused: bool = False
    draining: bool = False
    read_only: bool = False
    max_workers: Count = 1
    workers: tuple[WorkerStatus, ...] = Field(default=(), max_length=MAX_WORKERS)
    running: tuple[JobStatus, ...] = Field(default=(), max_length=MAX_LISTED_JOBS)
    queued: tuple[JobStatus, ...] = Field(default=(), max_length=MAX_LISTED_JOBS)
    ended: tuple[JobStatus, ...] = Field(default=(), max_length=MAX_LISTED_JOBS)
    queued_count: Count = 0
    done_count: Count = 0
    failed_count: Count = 0
    cancelled_count: Count = 0
    notes: tuple[Note, ...] = Field(default=(), max_length=MAX_NOTES)
    machine: MachineStatus = MachineStatus()
