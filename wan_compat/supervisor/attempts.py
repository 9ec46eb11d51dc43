"""The attempts of one job: what failed, what was tried, how that went. Decisions are policies/recovery's.

    attempt -> error -> next_step -> Recovering event -> attempt -> Recovered event, entry in the result
                            '-> Stop: the error rises, with everything that was tried and what a person can do

A job starts with no step; `after` is called for each error and either names the next step or raises.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from wan_compat.protocol.errors import MAX_FIXES, WanCompatError, clean_text
from wan_compat.protocol.values import FrameSpec, GenerationRequest, PipelineSpec
from wan_compat.supervisor import events as ev

if TYPE_CHECKING:  # only a job that fails needs them
    from wan_compat.policies.recovery.advice import Subject
    from wan_compat.policies.recovery.steps import Category, Failure, Step, Stop

MAX_ERROR_CHARS = 500

# What a worker answers to a plan that cannot be meant here, and to DecodeAgain without latents.
IMPOSSIBLE = ("model_not_compatible", "invalid_request")
NOTHING_KEPT = "no latents to decode again"


class Attempts:
    """Remembers one job's failures and steps.

    Args:
        request: What the user asked for by name is not changed by recovery.
        frames: Size and number of the frames to make.
        emit: Receives Recovering and Recovered.
        entries: Gets one `{"error", "action", "outcome"}` per step, when its outcome is known.
        on_cpu: How a job that a GPU was chosen for would be run without one; None where somebody asked for the GPU, or
            the job does not fit without.
    """

    def __init__(
        self,
        request: GenerationRequest,
        frames: FrameSpec,
        emit: Callable[[ev.Event], None],
        entries: list[dict[str, str]],
        *,
        on_cpu: PipelineSpec | None = None,
    ) -> None:
        self._enabled = request.recover
        self._on_cpu = on_cpu
        self._fixed = fixed_by(request)
        self._frames, self._emit, self._entries = frames, emit, entries
        self._tried: list[tuple[Category, str]] = []
        self._running: tuple[WanCompatError, Step] | None = None
        # What the running step was taken for, to go on from there if the step itself turns out to be impossible.
        self._cause: tuple[WanCompatError, Failure, PipelineSpec] | None = None

    def after(self, error: WanCompatError, phase: str, pipeline: PipelineSpec, *, latents: bool) -> Step:
        """Return what to try after `error`.

        Args:
            phase: In which the job was.
            pipeline: As it was loaded for the attempt that failed.
            latents: The worker has them, and could decode them again.

        Raises:
            WanCompatError: `error` itself, if nothing is left, or the one before, if `error` only says that a step was
                impossible here; its details tell what was tried.
        """
        from wan_compat.policies.recovery.decision import next_step
        from wan_compat.policies.recovery.steps import Situation, Step, Stop

        self._settle(f"failed: {_line(error)}")
        failure = failure_of(error, phase)
        if self._cause is not None and (failure.code in IMPOSSIBLE or NOTHING_KEPT in failure.message):
            error, failure, pipeline = self._cause
            latents = False
        situation = Situation(pipeline, self._frames, self._fixed, latents, tuple(self._tried), self._on_cpu)
        chosen = next_step(failure, situation) if self._enabled else Stop("recovery is switched off")
        if isinstance(chosen, Stop):
            freed = dataclasses.replace(situation, fixed=frozenset())
            if self._enabled and self._fixed and isinstance(next_step(failure, freed), Step):
                options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(self._fixed))
                error.fixes = (*error.fixes, f"leave {options} out: what was asked for by name is not changed")
            self._end(error, chosen)
        self._tried.append((failure.category, chosen.name))
        self._running = (error, chosen)
        self._cause = (error, failure, pipeline)
        self._emit(ev.Recovering(_line(error), chosen.action))
        return chosen

    def succeeded(self) -> None:
        """The last step led to a video."""
        self._settle("succeeded")

    def _settle(self, outcome: str) -> None:
        if self._running is None:
            return
        error, step = self._running
        self._running = None
        entry = {"error": _line(error), "action": step.action, "outcome": clean_text(outcome, MAX_ERROR_CHARS)}
        self._entries.append(entry)
        self._emit(ev.Recovered(entry["error"], entry["action"], entry["outcome"]))

    def _end(self, error: WanCompatError, stop: Stop) -> NoReturn:
        if self._tried or self._entries:
            error.details["recovery"] = [*self._entries, *error.details.get("recovery", ())]
            error.details["recovery_ended"] = stop.reason
        raise error


def failure_of(error: WanCompatError, phase: str) -> Failure:
    """Return what recovery decides by."""
    from wan_compat.policies.recovery.steps import Failure

    found = error.details.get("signal")
    component = error.details.get("component")
    return Failure(
        code=error.code,
        message=error.message,
        phase=phase,
        signal=found if isinstance(found, int) else None,
        component=component if isinstance(component, str) else None,
        kept="kept" in error.details,
        wanted=error.details.get("set_by") in ("request", "settings"),
    )


def fixed_by(request: GenerationRequest) -> frozenset[str]:
    """Return what a user named, and recovery therefore leaves alone."""
    named = {
        "precision": request.precision != "auto",
        "offload": request.offload is not None,
        "vae_tiling": request.vae_tiling is False,
        "attention_backend": request.attention_backend is not None,
        "layerwise_casting": request.layerwise_casting is not None,
    }
    return frozenset(name for name, is_fixed in named.items() if is_fixed)


def add_advice(error: WanCompatError, subject: Subject) -> None:
    """Add to an error what a person can do by hand, behind what it says itself."""
    from wan_compat.policies.recovery.advice import advise

    fixes = [*error.fixes, *advise(error.code, error.message, subject)]
    error.fixes = tuple(clean_text(fix, 500) for fix in dict.fromkeys(fixes))[:MAX_FIXES]


def wait(seconds: float, interrupted: Callable[[], bool]) -> bool:
    """Wait before a restart; return True as soon as the job is to stop."""
    deadline = time.monotonic() + seconds
    while not (stop := interrupted()) and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
    return stop


def _line(error: WanCompatError) -> str:
    return clean_text(f"{error.code}: {error.message}", MAX_ERROR_CHARS)
