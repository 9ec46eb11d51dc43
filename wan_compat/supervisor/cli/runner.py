"""Runs one request and follows it to its end: what `generate`, `demo` and `convert` share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from wan_compat.protocol.errors import InvalidRequest, JobCancelled, WanCompatError
from wan_compat.supervisor.cli.operations import watched
from wan_compat.supervisor.cli.progress import progress_view
from wan_compat.supervisor.cli.quantities import show_bytes, show_frames
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from wan_compat.protocol.results import ConversionReport, VideoGenerationResult
    from wan_compat.protocol.values import GenerationRequest, Mode
    from wan_compat.supervisor.client import Job, R, Supervisor
    from wan_compat.supervisor.load_test import LoadTestReport

M = TypeVar("M", bound="BaseModel")


# Fields whose option has another name.
_OPTIONS = {
    "model": "MODEL",
    "loras": "--lora",
    "references": "--reference",
    "phase_timeouts": "--phase-timeout",
}

# What a report about the model helps with: not usage (2), the sandbox (10, `doctor` tells that), deadlines and signals.
_EXPLAINED = frozenset({1, 3, 4, 5, 6, 7, 8})


def run_request(session: Session, request: GenerationRequest, *, min_tier: str | None = None) -> VideoGenerationResult:
    """Run one request in a supervisor of its own, under the settings that are in force here.

    The first Ctrl-C cancels the job and waits for its orderly end, a second one ends it at once; leaving the
    supervisor kills and reaps whatever is still there, in both cases and on any error.
    """
    with supervisor_of_settings(request.mode, min_tier, session) as supervisor:
        return _follow(session, watched(session, supervisor).submit(request))


def run_load_test(
    session: Session, request: GenerationRequest, *, smoke: bool, runs: int | None, min_tier: str | None = None
) -> LoadTestReport:
    """Run a load test as `run_request` runs a request."""
    from wan_compat.supervisor.load_test import DEFAULT_RUNS, load_and_test

    fields = {name: getattr(request, name) for name in request.model_fields_set - {"model", "prompt"}}
    with supervisor_of_settings(request.mode, min_tier, session) as supervisor:
        return load_and_test(
            watched(session, supervisor),
            request.model,
            smoke=smoke,
            runs=runs or DEFAULT_RUNS,
            follow=lambda job: _follow(session, job),
            **fields,
        )


def supervisor_of_settings(mode: Mode, min_tier: str | None, session: Session | None = None) -> Supervisor:
    """Return a supervisor under the settings that are in force here; it starts nothing until it gets a job."""
    from wan_compat.supervisor.client import Supervisor
    from wan_compat.supervisor.settings import load_settings

    supervisor = Supervisor(mode=mode, policy=load_settings().policy, min_tier=min_tier)
    if session is not None and session.verb:
        supervisor.program = f"wan-compat {session.verb}"  # what the monitor calls it
    return supervisor


def _follow(session: Session, job: Job[R]) -> R:
    try:
        with progress_view(session) as view:
            for event in job.events():
                view.show(event)
    except KeyboardInterrupt:
        session.note("Cancelling ... (Ctrl-C again to kill)")
        job.cancel()
    try:
        return job.result()
    except KeyboardInterrupt:
        raise JobCancelled("interrupted; the worker was killed") from None
    except WanCompatError as error:
        if error.diagnostic is None and error.exit_code in _EXPLAINED:
            error.diagnostic = _write_report(job.request.model, error)
        raise


def _write_report(model: str, error: WanCompatError) -> str | None:
    """Write the report that the error's last line names, into the user's state folder: nobody asked for a file here."""
    from wan_compat.supervisor.diagnostics import diagnose_failure
    from wan_compat.supervisor.private_files import state_folder

    return diagnose_failure(model, error, state_folder() / "diagnostics")


def run_conversion(session: Session, *, min_tier: str | None = None, **fields: Any) -> ConversionReport:
    """Run one conversion as `run_request` runs a request. `fields` are those of a ConversionRequest."""
    from wan_compat.protocol.conversion import ConversionRequest

    request = built(ConversionRequest, fields)
    with supervisor_of_settings(request.mode, min_tier, session) as supervisor:
        return _follow(session, watched(session, supervisor).submit_conversion(request))


def build_request(**fields: Any) -> GenerationRequest:
    """Return the request, or say which option is out of bounds in the words of the command line."""
    from wan_compat.protocol.values import GenerationRequest

    return built(GenerationRequest, fields)


def built(kind: type[M], fields: Mapping[str, Any]) -> M:
    """Build a value from options, or raise InvalidRequest that names the first wrong one."""
    from pydantic import ValidationError

    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0])
        option = _OPTIONS.get(field) or f"--{field.removesuffix('_s').removesuffix('_bytes').replace('_', '-')}"
        raise InvalidRequest(f"{option} {_what_is_wrong(first, in_bytes=field.endswith('_bytes'))}") from error


def _what_is_wrong(error: ErrorDetails, *, in_bytes: bool) -> str:
    """Return pydantic's message about a value, without the words that are for programmers."""
    bounds = error.get("ctx", {})
    match error["type"]:
        case "string_unicode":
            return "is not UTF-8"
        case "string_too_short":
            return "is empty"
        case "string_too_long":
            return f"is longer than {bounds['max_length']} characters"
        case "greater_than_equal" if in_bytes:
            return f"should be at least {bounds['ge'] >> 20} MiB"
        case "less_than_equal" if in_bytes:
            return f"should be at most {bounds['le'] >> 40} TiB"
    return re.sub(r"^(Input|String|Tuple|Dictionary|Value error,) ", "", error["msg"])


def describe_result(session: Session, result: VideoGenerationResult) -> str:
    """Return what a person wants to know: the file first, how it was made with --verbose."""
    output = result.output
    assert output is not None
    lines = [
        f"Wrote {output.path}: {show_frames(output.num_frames)}, {output.width}x{output.height}, {output.fps:g} fps, "
        f"{show_bytes(output.bytes)}, in {result.timings.total_s:.1f} s "
        f"(seed {result.metadata.generation_params.get('seed')}, sandbox tier {result.sandbox.tier})"
    ]
    lines += [f"Recovered: {step['action']}, after {step['error']}" for step in result.recovery if _helped(step)]
    # What came up on the way was told then.
    lines += [f"Warning: {warning}" for warning in result.warnings if warning not in session.warned]
    if session.verbose:
        timings = result.to_json()["timings"]
        lines += [f"  {name.removesuffix('_s'):<14} {seconds:8.2f} s" for name, seconds in timings.items()]
        lines.append(f"  {'worker memory':<14} {show_bytes(result.memory_used):>10}")
    return "\n".join(lines)


def _helped(step: Mapping[str, str]) -> bool:
    return step.get("outcome") == "succeeded"


def free_name(stem: str, suffix: str = ".mp4", *, num_videos: int = 1) -> str:
    """Return `stem.mp4` in the working folder, or `stem-2.mp4` and so on: nothing is overwritten unasked. Of several
    videos, each name that follows from it is free."""
    from wan_compat.policies.videos import outputs_of
    from wan_compat.protocol.values import MAX_VIDEOS

    name, number = stem + suffix, 2
    wanted = num_videos if isinstance(num_videos, int) and 1 <= num_videos <= MAX_VIDEOS else 1  # refused later
    while any(os.path.lexists(path) for path in outputs_of(name, wanted)):
        name, number = f"{stem}-{number}{suffix}", number + 1
    return name


def name_for_prompt(prompt: str) -> str:
    """Return a file stem from a prompt: lower-case ASCII words, never empty, never hidden, never a path."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:60].rstrip("-") or "video"
