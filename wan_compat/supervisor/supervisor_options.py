"""What a `Supervisor` is made with, checked before anything else is done."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ValidationError

from wan_compat.policies.policy import Policy, replace
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy
from wan_compat.protocol.values import Mode
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor import audit_log

MAX_WORKERS = 64
MAX_QUEUED = 1_000_000
MAX_IDLE_S = 30 * 86400


@dataclasses.dataclass(frozen=True)
class SupervisorOptions:
    """`Supervisor` says what they mean; `policy` is what jobs may do and use once everything narrowed it."""

    mode: Mode
    policy: Policy
    spawn_only: bool
    workers: int
    max_queued: int
    max_warm: int
    max_idle_s: float | None
    control: str


def checked_options(
    mode: Mode | str,
    *,
    policy: Policy | None,
    min_tier: Tier | str | None,
    memory_limit_bytes: int | None,
    start_method: str,
    workers: int,
    max_queued: int,
    max_warm: int | None,
    max_idle_s: float | None,
    control: str,
) -> SupervisorOptions:
    """Return the options as they are meant.

    Raises:
        InvalidRequest: Unknown mode, tier, start method or control, or a number out of range.
        RefusedByPolicy: The policy does not allow the mode, or a tier without a sandbox.
    """
    wanted: Mode = _choice(Mode, mode, "mode")
    fields: dict[str, Any] = {}
    if min_tier is not None:
        fields["min_tier"] = _choice(Tier, min_tier, "min_tier")
    if memory_limit_bytes is not None:
        fields["memory_limit_bytes"] = memory_limit_bytes
    try:
        policy = replace(policy or Policy(), fields)
    except ValidationError as error:
        raise InvalidRequest(f"memory_limit_bytes is {memory_limit_bytes!r}, out of range") from error
    if policy.min_tier is Tier.E and not policy.allow_unsandboxed:
        raise refused(
            "tier E means no sandbox at all, and the policy does not allow it", "ask for tier A, B or C", wanted
        )
    if wanted is Mode.TRUST and policy.mode is Mode.SAFE:
        raise refused("the policy allows safe mode only", "run the model in safe mode", wanted)
    if start_method not in ("zygote", "spawn"):
        raise InvalidRequest(f"start_method is {start_method!r}; known are 'zygote' and 'spawn'")
    if control not in ("full", "read-only", "none"):
        raise InvalidRequest(f"control is {control!r}; known are 'full', 'read-only' and 'none'")
    workers = _number(workers, 1, MAX_WORKERS, "workers")
    if max_idle_s is not None and not 0 <= max_idle_s <= MAX_IDLE_S:
        raise InvalidRequest(f"max_idle_s is {max_idle_s!r}; it is from 0 to {MAX_IDLE_S} seconds")
    return SupervisorOptions(
        mode=wanted,
        policy=policy,
        spawn_only=start_method == "spawn",
        workers=workers,
        max_queued=_number(max_queued, 1, MAX_QUEUED, "max_queued"),
        max_warm=workers if max_warm is None else _number(max_warm, 0, MAX_WORKERS, "max_warm"),
        max_idle_s=max_idle_s,
        control=control,
    )


def refused(message: str, hint: str, mode: Mode, model: str | None = None) -> RefusedByPolicy:
    """Return a refusal that the audit log knows of."""
    error = RefusedByPolicy(message, hint=hint)
    audit_log.note_error(error, model=model, mode=mode.value)
    return error


def _choice(kind: Any, value: Any, name: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(repr(item.value) for item in kind)
        raise InvalidRequest(f"{name} is {value!r}; known are {known}") from error


def _number(value: int, least: int, most: int, name: str) -> int:
    if not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(f"{name} is {value!r}; it is a whole number from {least} to {most}")
    return value
