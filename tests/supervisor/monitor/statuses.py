"""Statuses to look at, made up."""

from __future__ import annotations

from typing import Any

from wan_compat.protocol.status import JobStatus, MachineStatus, Note, SupervisorStatus, WorkerStatus

NOW = 1_770_000_000.0
GB = 1_000_000_000
# Each of these would change the terminal, or hide or forge text on it, if it got there as it is.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m [bold red]markup[/] [link=https://evil.example]x[/link] \r\n\x9b2J"
    "\u202egnp.exe\u202c \u200b\ud7ff :warning: 漢字 \x00 " + "é" * 20
)


def a_worker(id: str = "w1", **fields: Any) -> WorkerStatus:
    values = {
        "id": id,
        "pid": 4720,
        "activity": "busy",
        "mode": "safe",
        "tier": "A",
        "model": "/models/Wan2.1-T2V-1.3B-Diffusers",
        "job": "j12",
        "rss_bytes": 9_100_000_000,
        "memory_limit_bytes": 20 * GB,
        "cpu_percent": 98.0,
        "started_unix_s": NOW - 500,
        **fields,
    }
    return WorkerStatus(**values)


def a_job(id: str = "j12", **fields: Any) -> JobStatus:
    values = {
        "id": id,
        "state": "running",
        "model": "/models/Wan2.1-T2V-1.3B-Diffusers",
        "prompt": "a red fox in snow",
        "worker": "w1",
        "phase": "denoise",
        "step": 12,
        "total": 40,
        "rate_s": 1.2,
        "eta_s": 34.0,
        "submitted_unix_s": NOW - 60,
        "started_unix_s": NOW - 50,
        **fields,
    }
    return JobStatus(**values)


def waiting(id: str, prompt: str = "a blue ball", **fields: Any) -> JobStatus:
    return JobStatus(id=id, state="queued", model="/models/m", prompt=prompt, submitted_unix_s=NOW - 5, **fields)


def a_status(id: str = "aaaa", **fields: Any) -> SupervisorStatus:
    """One supervisor: a busy and an idle worker, a running job, two that wait, one that failed."""
    values = {
        "id": id,
        "pid": 4711,
        "program": "python app.py",
        "version": "0.1.0",
        "mode": "safe",
        "started_unix_s": NOW - 1000,
        "now_unix_s": NOW,
        "max_workers": 2,
        "workers": (
            a_worker(),
            a_worker(
                "w2", pid=4721, activity="idle", job=None, rss_bytes=3 * GB, cpu_percent=0.0, started_unix_s=NOW - 9
            ),
        ),
        "running": (a_job(),),
        "queued": (waiting("j13"), waiting("j14", "a green kite", priority=5)),
        "queued_count": 2,
        "ended": (
            a_job("j11", state="failed", ended_unix_s=NOW - 1, error_code="model_not_found", error="no such model"),
        ),
        "failed_count": 1,
        "notes": (
            Note(at_unix_s=NOW - 1, level="error", text="refused: pipeline.py is not approved", job="j11"),
            Note(at_unix_s=NOW - 9, level="info", text="worker w2 started"),
        ),
        "machine": MachineStatus(ram_total_bytes=25 * GB, ram_available_bytes=11 * GB, cpu_count=2, load_1=1.5),
        **fields,
    }
    return SupervisorStatus(**values)


def hostile_status() -> SupervisorStatus:
    """One whose every text is HOSTILE, and whose every figure is as large as it may be."""
    text = HOSTILE
    big = 2**62
    job = a_job(
        prompt=text, model=text, label=text, group=text, phase=text[:32], output=text, rate_s=1e300, eta_s=1e300,
        step=big, total=big, attempt=big, error=text, error_code=text[:64], submitted_unix_s=1e300,
    )  # fmt: skip
    return a_status(
        program=text,
        pid=big,
        version=text[:64],
        mode="trust",
        started_unix_s=1e300,
        workers=(
            a_worker(
                pid=big, mode="trust", model=text, rss_bytes=big, memory_limit_bytes=big, vram_bytes=big,
                cpu_percent=10_000.0, started_unix_s=1e300, jobs_done=big, unusual=(text,) * 8,
            ),
        ),
        running=(job,),
        queued=(job.model_copy(update={"id": "j13", "state": "queued"}),),
        ended=(job.model_copy(update={"id": "j14", "state": "failed", "ended_unix_s": 1e300}),),
        queued_count=big,
        done_count=big,
        failed_count=big,
        notes=(Note(at_unix_s=1e300, level="error", text=text, code=text[:64], job="j12", worker="w1"),),
        machine=MachineStatus(
            ram_total_bytes=big, ram_available_bytes=0, vram_total_bytes=big, vram_used_bytes=big, cpu_count=big, load_1=1e300
        ),
    )  # fmt: skip
