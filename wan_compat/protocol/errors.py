"""Every error of wan-compat, in one tree, with a stable code and an exit code for the command line.

    WanCompatError
    ├── InvalidRequest               invalid_request            2   what was asked cannot be done as asked
    │   ├── OutputExists             output_exists              2
    │   ├── BatchInvalid             batch_invalid              2   lines of a batch; nothing was started
    │   ├── BatchBusy                batch_busy                 2   another process runs this batch
    │   ├── PipelineFeatureMissing   pipeline_feature_missing   2   what needs a pipeline's objects in one's own process
    │   ├── UnknownJob               unknown_job                2   no job of that id there, or no longer
    │   └── AlreadyServing           already_serving            2   another supervisor serves on that socket
    ├── EnvironmentLacks             environment_lacks          3   this machine or installation misses something
    │   ├── FfmpegMissing            ffmpeg_missing             3
    │   ├── WorkerExtraMissing       worker_extra_missing       3
    │   ├── GpuUnusable              gpu_unusable               3   CUDA does not work in a worker
    │   ├── OutputNotWritable        output_not_writable        2   another folder or name is what helps
    │   ├── FetchFailed              fetch_failed               3   an address that cannot be reached
    │   ├── NotServing               not_serving                3   nobody of ours answers on that socket
    │   ├── VersionConflict          version_conflict           3   packages that cannot be there together
    │   ├── JournalUnusable          journal_unusable           3   a batch's journal: damaged, or of another version
    │   ├── StateUnsafe              state_unsafe               3   state: foreign, writable by others or no file
    │   └── StateCorrupt             state_corrupt              3   trust store or audit log: malformed or tampered with
    ├── ModelInvalid                 model_invalid              4   the files are not a usable model
    │   ├── ModelNotFound            model_not_found            4
    │   ├── ModelIndexMissing        model_index_missing        4
    │   ├── ModelCorrupt             model_corrupt              4
    │   └── ModelUnreadable          model_unreadable           4
    ├── ModelNotCompatible           model_not_compatible       1   a sound model that cannot run here
    ├── RefusedByPolicy              refused_by_policy          5   possible, but not allowed
    │   ├── RemoteCodeRefused        remote_code_refused        5
    │   ├── TrustRefused             trust_refused              5   trust mode, and no approval covers what is there
    │   ├── NotConfirmed             not_confirmed              5   a person said no, or could not be asked
    │   ├── HashMismatch             hash_mismatch              5   fetched bytes are not those that were pinned
    │   └── PickleRefused            pickle_refused             5
    ├── ResourceExceeded             resource_exceeded          6   not enough, or more than allowed
    │   ├── MemoryExceeded           memory_exceeded            6
    │   ├── DiskExceeded             disk_exceeded              6
    │   └── QueueFull                queue_full                 6   as many jobs wait as may
    ├── GenerationFailed             generation_failed          7   the worker could not finish
    │   ├── WorkerStartFailed        worker_start_failed        7
    │   ├── WorkerDied               worker_died                7
    │   │   └── WorkerKilled         worker_killed              7   on somebody's request
    │   ├── SupervisorGone           supervisor_gone            7   a served supervisor ended, and its jobs with it
    │   ├── GivenUp                  given_up                   7   workers of this model died again and again
    │   ├── ForbiddenCall            forbidden_call             7   a system call that only an attacker makes
    │   ├── ProtocolViolation        protocol_violation         7   hostile or broken messages or frames
    │   │   └── CorruptFrame         corrupt_frame              7
    │   └── UnusableFrames           unusable_frames            7   NaN, infinite or missing pixels
    ├── EncodingFailed               encoding_failed            8
    ├── BatchPartlyFailed            batch_partly_failed        9   some of its videos
    ├── SandboxUnavailable           sandbox_unavailable       10   the required tier cannot be entered here
    │   └── SandboxEntryFailed       sandbox_entry_failed      10   a layer failed while being entered
    ├── DeadlineExceeded             deadline_exceeded        124
    │   ├── JobTimeout               job_timeout              124   the time that the user gave is over
    │   ├── PhaseTimeout             phase_timeout            124   a phase had its time; the job has more
    │   ├── WorkerSilent             worker_silent            124
    │   └── WorkerStalled            worker_stalled           124   it answers, and does not go on
    ├── JobCancelled                 job_cancelled            130
    └── Terminated                   terminated               143

Subclasses register themselves by `code`; `from_wire` rebuilds an error that a worker reported, and nothing else:
a worker chooses among registered codes and gives text, which is bounded and cleaned here.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from wan_compat.protocol.results import VideoGenerationResult

MAX_MESSAGE_CHARS = 4000
MAX_FIX_CHARS = 500
MAX_FIXES = 8

_by_code: dict[str, type[WanCompatError]] = {}


class WanCompatError(Exception):
    """Base of all errors that wan-compat raises on purpose.

    Message and fixes are cleaned here (`clean_text`), once for every sink: they quote file names, configuration values
    and what workers print, any of which may carry terminal controls.

    Args:
        message: What happened, with the actual values.
        fixes: What a person can do about it, most promising first.
        diagnostic: Path of a report that tells more, if one was written.
        details: Plain data for machines (sizes, paths, exit status).

    Attributes:
        finished: The results of the videos that stand, of a job that failed in a later one; with their frames, where
            those are in memory.
    """

    code: ClassVar[str] = "wan_compat_error"
    title: ClassVar[str] = "wan-compat error"
    exit_code: ClassVar[int] = 7

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        fixes: Sequence[str] = (),
        diagnostic: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.message = clean_text(message)
        super().__init__(self.message)
        self.fixes: tuple[str, ...] = tuple(
            clean_text(fix, MAX_FIX_CHARS) for fix in ((hint,) if hint else ()) + tuple(fixes)
        )
        self.diagnostic = diagnostic
        self.details: dict[str, Any] = dict(details or {})
        self.finished: tuple[VideoGenerationResult, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = _by_code.get(cls.code)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise TypeError(f"error code {cls.code!r} is taken by {known.__qualname__}")
        _by_code[cls.code] = cls

    @property
    def hint(self) -> str | None:
        return self.fixes[0] if self.fixes else None

    def to_wire(self) -> dict[str, Any]:
        """Return the plain form that crosses a process boundary or ends in a JSON document."""
        return {"code": self.code, "message": self.message, "fixes": list(self.fixes)}

    def to_json(self) -> dict[str, Any]:
        """Return the document of INTERFACES: `{"error": {...}}`."""
        return {
            "error": {
                "code": self.code,
                "title": self.title,
                "message": self.message,
                "fixes": list(self.fixes),
                "diagnostic": self.diagnostic,
                "details": self.details,
            }
        }


class InvalidRequest(WanCompatError):
    code = "invalid_request"
    title = "Invalid request"
    exit_code = 2


class OutputExists(InvalidRequest):
    code = "output_exists"
    title = "Output exists"


class PipelineFeatureMissing(InvalidRequest, AttributeError):
    """An attribute, argument or method of a diffusers pipeline that does not reach across the sandbox.

    An AttributeError too, so that `hasattr` and `getattr` with a default answer as scripts expect.
    """

    code = "pipeline_feature_missing"
    title = "A sandboxed pipeline does not have this"


class UnknownJob(InvalidRequest):
    code = "unknown_job"
    title = "There is no such job"


class AlreadyServing(InvalidRequest):
    """`details` carry `socket` and `pid`."""

    code = "already_serving"
    title = "Another supervisor serves there"


class BatchInvalid(InvalidRequest):
    """`details["problems"]` are all that were found, each as `file:line: field: why`."""

    code = "batch_invalid"
    title = "Invalid batch"

    @classmethod
    def of(cls, problems: Sequence[str], hint: str | None = None) -> BatchInvalid:
        """Return the error for these problems, which `details` has in full."""
        first = problems[0] if problems else ""
        words = first if len(problems) == 1 else f"{len(problems)} problems, the first: {first}"
        return cls(f"nothing was started: {words}", hint=hint, details={"problems": list(problems)})


class BatchBusy(InvalidRequest):
    """`details` carry `pid` and `host` of the process that holds the batch's folder."""

    code = "batch_busy"
    title = "The batch is running already"


class EnvironmentLacks(WanCompatError):
    code = "environment_lacks"
    title = "Something is missing on this machine"
    exit_code = 3


class FfmpegMissing(EnvironmentLacks):
    code = "ffmpeg_missing"
    title = "No usable ffmpeg"


class WorkerExtraMissing(EnvironmentLacks):
    code = "worker_extra_missing"
    title = "The worker's libraries are not installed"


class GpuUnusable(EnvironmentLacks):
    code = "gpu_unusable"
    title = "The GPU cannot be used"


class OutputNotWritable(EnvironmentLacks):
    code = "output_not_writable"
    title = "Output cannot be written"
    exit_code = 2  # a place that somebody named: usage, and not a lack of the machine


class FetchFailed(EnvironmentLacks):
    code = "fetch_failed"
    title = "A file could not be fetched"


class NotServing(EnvironmentLacks):
    """`details` carry `socket`."""

    code = "not_serving"
    title = "Nobody serves there"


class VersionConflict(EnvironmentLacks):
    """`details["conflicts"]` name who wants which version."""

    code = "version_conflict"
    title = "The packages do not fit together"


class JournalUnusable(EnvironmentLacks):
    code = "journal_unusable"
    title = "The journal of the batch cannot be used"


class StateUnsafe(EnvironmentLacks):
    code = "state_unsafe"
    title = "The state folder is not safe to use"


class StateCorrupt(EnvironmentLacks):
    code = "state_corrupt"
    title = "Saved state is damaged"


class ModelInvalid(WanCompatError):
    code = "model_invalid"
    title = "Model Compatibility Error"
    exit_code = 4


class ModelNotFound(ModelInvalid):
    code = "model_not_found"


class ModelIndexMissing(ModelInvalid):
    code = "model_index_missing"


class ModelCorrupt(ModelInvalid):
    code = "model_corrupt"


class ModelUnreadable(ModelInvalid):
    code = "model_unreadable"


class ModelNotCompatible(WanCompatError):
    code = "model_not_compatible"
    title = "Model Compatibility Error"
    exit_code = 1


class RefusedByPolicy(WanCompatError):
    code = "refused_by_policy"
    title = "Refused by policy"
    exit_code = 5


class RemoteCodeRefused(RefusedByPolicy):
    code = "remote_code_refused"


class TrustRefused(RefusedByPolicy):
    """`details` carry `tree_hash` and the difference to the nearest approval: `added`, `removed`, `changed`."""

    code = "trust_refused"


class NotConfirmed(RefusedByPolicy):
    code = "not_confirmed"
    title = "Not confirmed"


class HashMismatch(RefusedByPolicy):
    """`details` carry `file`, `expected` and `found`."""

    code = "hash_mismatch"
    title = "A file is not what was pinned"


class PickleRefused(RefusedByPolicy):
    code = "pickle_refused"


class ResourceExceeded(WanCompatError):
    code = "resource_exceeded"
    title = "Not enough resources"
    exit_code = 6


class MemoryExceeded(ResourceExceeded):
    code = "memory_exceeded"
    title = "Not enough memory"


class DiskExceeded(ResourceExceeded):
    code = "disk_exceeded"
    title = "Not enough disk space"


class QueueFull(ResourceExceeded):
    """`details` carry `queued` and `max_queued`."""

    code = "queue_full"
    title = "The queue is full"


class GenerationFailed(WanCompatError):
    code = "generation_failed"
    title = "Generation failed"
    exit_code = 7


class WorkerStartFailed(GenerationFailed):
    code = "worker_start_failed"
    title = "The worker did not start"


class WorkerDied(GenerationFailed):
    code = "worker_died"
    title = "The worker died"


class WorkerKilled(WorkerDied):
    """Somebody asked for it (`Supervisor.kill_worker`): no fault of the model, and no reason for another attempt."""

    code = "worker_killed"
    title = "The worker was killed on request"


class SupervisorGone(GenerationFailed):
    """What became of the job nobody can tell; a file that it was to write is whole or absent."""

    code = "supervisor_gone"
    title = "The supervisor is gone"


class GivenUp(GenerationFailed):
    """`details` carry `deaths`, `last_error` and `until_unix_s`."""

    code = "given_up"
    title = "This model's workers die again and again"


class ForbiddenCall(GenerationFailed):
    """`details["incident"]` tells the call and its arguments."""

    code = "forbidden_call"
    title = "The worker made a forbidden system call"


class ProtocolViolation(GenerationFailed):
    code = "protocol_violation"
    title = "The worker broke the protocol"


class CorruptFrame(ProtocolViolation):
    code = "corrupt_frame"
    title = "The worker published an impossible frame"


class UnusableFrames(GenerationFailed):
    code = "unusable_frames"
    title = "The model produced unusable frames"


class EncodingFailed(WanCompatError):
    code = "encoding_failed"
    title = "Encoding failed"
    exit_code = 8


class BatchPartlyFailed(WanCompatError):
    """`details["summary"]` names what failed."""

    code = "batch_partly_failed"
    title = "Some videos failed"
    exit_code = 9


class SandboxUnavailable(WanCompatError):
    code = "sandbox_unavailable"
    title = "The required sandbox is not available"
    exit_code = 10


class SandboxEntryFailed(SandboxUnavailable):
    """A layer could not be entered. `details` carry `layer` and `errno`."""

    code = "sandbox_entry_failed"
    title = "The sandbox could not be entered"


class DeadlineExceeded(WanCompatError):
    code = "deadline_exceeded"
    title = "Timeout"
    exit_code = 124


class JobTimeout(DeadlineExceeded):
    code = "job_timeout"


class PhaseTimeout(DeadlineExceeded):
    """`details` carry `phase`, `timeout_s`, `set_by` ("request", "settings" or "default"), and `step` of `total`."""

    code = "phase_timeout"


class WorkerSilent(DeadlineExceeded):
    code = "worker_silent"
    title = "The worker does not answer"


class WorkerStalled(DeadlineExceeded):
    """`details["stalled_s"]`: for how long."""

    code = "worker_stalled"
    title = "The worker does not go on"


class JobCancelled(WanCompatError):
    code = "job_cancelled"
    title = "Interrupted"
    exit_code = 130


class Terminated(WanCompatError):
    code = "terminated"
    title = "Terminated"
    exit_code = 143


# What a worker may report of itself. Everything else about a worker is the supervisor's own observation:
# a worker must not be able to claim, say, that the user cancelled or that a policy refused.
WORKER_MAY_REPORT: frozenset[str] = frozenset(
    cls.code
    for cls in (
        InvalidRequest,
        EnvironmentLacks,
        WorkerExtraMissing,
        GpuUnusable,
        ModelInvalid,
        ModelCorrupt,
        ModelUnreadable,
        ModelNotCompatible,
        MemoryExceeded,
        GenerationFailed,
        UnusableFrames,
        SandboxEntryFailed,
    )
)


def clean_text(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Make untrusted text safe for a terminal, a log line or a document.

    Control and format characters (ANSI escapes, bidi overrides, zero-width, surrogates) become visible escapes,
    newlines stay, and the result is at most `limit` characters long. See SECURITY.md, "output injection".
    """
    out: list[str] = []
    for char in text[: limit + 1]:
        if char == "\n" or (char.isprintable() and unicodedata.category(char) not in ("Cf", "Co", "Cn", "Cs")):
            out.append(char)
        elif char == "\t":
            out.append("    ")
        else:
            out.append(f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{{{ord(char):x}}}")
    cleaned = "".join(out)
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def error_class(code: str) -> type[WanCompatError] | None:
    """Return the class registered for `code`, or None."""
    return _by_code.get(code)


def from_worker(code: str, message: str, fixes: Sequence[str] = (), component: str | None = None) -> WanCompatError:
    """Rebuild an error that a worker reported; unknown or presumptuous codes become `GenerationFailed`."""
    cls = _by_code.get(code) if code in WORKER_MAY_REPORT else None
    details = {"component": component} if component is not None else {}
    return (cls or GenerationFailed)(message, fixes=list(fixes)[:MAX_FIXES], details=details)
