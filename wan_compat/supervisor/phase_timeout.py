"""The error of a phase that took longer than it may: who set that limit, how far it came, what helps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_compat.policies.phases import Overdue
from wan_compat.protocol.errors import PhaseTimeout
from wan_compat.protocol.messages import Progress

# What else than more time helps.
_LEANER = {
    "start_worker": "see whether the machine swaps or something else takes it: wan-compat doctor",
    "load": "put the model on a faster disk",
    "text_encode": "see whether the machine swaps: wan-compat monitor",
    "denoise": "ask for fewer frames, a smaller size or fewer steps",
    "decode": "ask for fewer frames or a smaller size",
    "encode": "choose a faster format or --quality draft",
    "open": "put the weights on a faster disk",
    "convert": "put the weights and the output on faster disks",
}
_WITH_STEPS = ("load", "text_encode", "denoise", "decode")


def phase_timeout(
    overdue: Overdue,
    requested: Mapping[Any, float],
    settings: Mapping[Any, float],
    said: Progress | None = None,
) -> PhaseTimeout:
    """Return the error.

    Args:
        requested, settings: Phase -> seconds, as the request and the settings have them.
        said: What the worker said last of the order that it has.
    """
    phase = overdue.phase
    set_by = "default"
    if phase in requested or phase in settings:
        set_by = "request" if requested.get(phase) == overdue.limit_s else "settings"
    details: dict[str, object] = {"phase": phase, "timeout_s": overdue.limit_s, "set_by": set_by}
    where = ""
    if phase in _WITH_STEPS:
        where = ", before its first step was over"
        if said is not None and said.phase == phase:
            where = f", after step {said.step} of {said.total}"
            details |= {"step": said.step, "total": said.total}
    allow = f"allow more with --phase-timeout {phase}=TIME"
    if phase in settings:
        allow = f"allow more in the settings: phase_timeouts gives {phase} {settings[phase]:g} s"
    return PhaseTimeout(
        f"{phase} took longer than {overdue.limit_s:g} s{where}", fixes=[allow, _LEANER[phase]], details=details
    )
