"""The policy: what jobs may do and use here. Read whole or refused whole; a later source can only narrow it.

    built in  <-  user's configuration (may widen)  <-  working folder (narrows)  <-  job (narrows)

The user's own configuration and what they type on a command line may choose anything that is offered at all, since
they own what is protected. A file that lies in a working folder may have come with a download: it can make things
stricter, never looser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wan_compat.policies.limits import LEAST_PHASE_S, LONGEST_PHASE_S
from wan_compat.policies.phases import read_all_timeouts
from wan_compat.policies.quantities import bytes_from, seconds_from
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy, clean_text
from wan_compat.protocol.values import ConversionPhase, Mode, TimedPhase
from wan_compat.sandbox.spec import Tier

MIN_SCRATCH_BYTES = 1 << 20


class Policy(BaseModel):
    """What is allowed. None means no limit of its own: the machine's, or the job's.

    Args:
        min_tier: Weakest sandbox tier to run in.
        allow_unsandboxed: Whether tier E, no sandbox at all, may be used; needs `min_tier = "E"` too.
        mode: The most that may be allowed: "safe", or "trust" for approved code too.
        memory_limit_bytes: Cap for each worker.
        gpu_memory_limit_bytes: Soft cap for each worker on all GPUs together: it is looked at, then enforced.
        cpu_cores: CPU time per worker and second; enforced where there is a cgroup.
        threads, open_files: Counts per worker.
        scratch_bytes: Size of a worker's only writable folder; its pages count as its memory.
        timeout_s: Longest a job may take.
        phase_timeouts: Phase -> seconds: instead of what a phase would be given, and the most that a job may ask for.
        allow_downloads: Whether `--download` and `fetch_pipeline_code` may ask a hub for anything.
        allow_restricted: Whether `--restricted` may be used: code of a repository in an audited subset, in safe mode.
        allow_gpu: Whether workers may be given a GPU: its driver is one wall less (SECURITY.md).
        require_manifest: Whether a model is used only when its files agree with hashes that came with them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

    min_tier: Tier = Tier.B
    allow_unsandboxed: bool = False
    mode: Mode = Mode.TRUST
    memory_limit_bytes: int | None = Field(default=None, ge=256 << 20, le=1 << 50)
    gpu_memory_limit_bytes: int | None = Field(default=None, ge=256 << 20, le=1 << 50)
    cpu_cores: float | None = Field(default=None, ge=0.1, le=4096)
    threads: int = Field(default=128, ge=16, le=4096)
    open_files: int = Field(default=256, ge=64, le=65536)
    scratch_bytes: int = Field(default=64 << 20, ge=MIN_SCRATCH_BYTES, le=16 << 30)
    timeout_s: float | None = Field(default=None, ge=1, le=30 * 86400)
    phase_timeouts: dict[TimedPhase | ConversionPhase, Annotated[float, Field(gt=0, le=LONGEST_PHASE_S)]] = Field(
        default_factory=dict
    )
    allow_downloads: bool = True
    allow_restricted: bool = True
    allow_gpu: bool = True
    require_manifest: bool = False


# How a setting is written in a file and in the environment, and what turns the text into its value.
_READERS = {
    "min_tier": ("min_tier", Tier),
    "allow_unsandboxed": ("allow_unsandboxed", None),
    "mode": ("mode", Mode),
    "memory_limit": ("memory_limit_bytes", bytes_from),
    "gpu_memory_limit": ("gpu_memory_limit_bytes", bytes_from),
    "cpu_cores": ("cpu_cores", None),
    "threads": ("threads", None),
    "open_files": ("open_files", None),
    "scratch": ("scratch_bytes", bytes_from),
    "timeout": ("timeout_s", seconds_from),
    "phase_timeouts": ("phase_timeouts", read_all_timeouts),
    "allow_downloads": ("allow_downloads", None),
    "allow_restricted": ("allow_restricted", None),
    "allow_gpu": ("allow_gpu", None),
    "require_manifest": ("require_manifest", None),
}
SETTINGS = tuple(_READERS)


def read_policy(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check a table of settings and return the fields it sets. Nothing of a table with one mistake is used.

    Raises:
        InvalidRequest: Unknown keys, wrong types, numbers out of range; names `source` and the key.
    """
    fields: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _READERS:
            raise InvalidRequest(
                f"{source}: there is no setting {clean_text(str(key), 60)!r}", hint=f"known are {', '.join(SETTINGS)}"
            )
        name, reader = _READERS[key]
        if reader is not None and isinstance(value, str | dict if key == "phase_timeouts" else str):
            try:
                value = reader(value)
            except (ValueError, InvalidRequest) as error:
                raise InvalidRequest(f"{source}: {key}: {clean_text(str(error), 200)}") from error
        fields[name] = float(value) if name in ("cpu_cores", "timeout_s") and type(value) is int else value
    try:
        policy = Policy(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{source}: {where}: {clean_text(first['msg'], 200)}") from error
    return {name: getattr(policy, name) for name in fields}


def setting_of(policy: Policy, setting: str) -> tuple[str, Any]:
    """Return (field, value) of a setting as plain data."""
    name = _READERS[setting][0]
    value = getattr(policy, name)
    return name, getattr(value, "value", value)


def replace(policy: Policy, fields: Mapping[str, Any]) -> Policy:
    """Return `policy` with `fields` set, in either direction; for sources that the user owns."""
    return Policy(**{**dict(policy), **fields})


def narrow(policy: Policy, fields: Mapping[str, Any], source: str) -> Policy:
    """Return `policy` narrowed by `fields`.

    Raises:
        RefusedByPolicy: A field would widen it; names `source`, the field and both values.
    """
    for name, value in fields.items():
        allowed = getattr(policy, name)
        if name == "phase_timeouts":  # what is not said depends on model and video, and is never below the least
            allowed = {phase: allowed.get(phase, LEAST_PHASE_S[phase]) for phase in value}
        if not _is_narrower(name, value, allowed):
            raise RefusedByPolicy(
                f"{source} sets {name} to {_show(value)}, which is looser than {_show(allowed)}",
                hint="a file in the working folder and a job can only tighten; "
                "put it into your user configuration if you mean it",
            )
    if "phase_timeouts" in fields:  # of the phases that it does not name, what was said before stays
        fields = {**fields, "phase_timeouts": {**policy.phase_timeouts, **fields["phase_timeouts"]}}
    return replace(policy, fields)


def _is_narrower(name: str, value: Any, allowed: Any) -> bool:
    if name == "min_tier":
        return bool(value.satisfies(allowed))
    if name in ("allow_unsandboxed", "allow_downloads", "allow_restricted", "allow_gpu"):
        return not value or bool(allowed)
    if name == "require_manifest":
        return bool(value) or not allowed
    if name == "mode":
        return value is Mode.SAFE or allowed is Mode.TRUST
    if name == "phase_timeouts":
        return all(seconds <= allowed[phase] for phase, seconds in value.items())
    return (math.inf if value is None else value) <= (math.inf if allowed is None else allowed)


def _show(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{phase}={seconds:g}s" for phase, seconds in value.items())
    return "no limit" if value is None else str(getattr(value, "value", value))
