"""Where one job stands while its worker is waited for: its phase and pace, its warnings, and what may end it meanwhile.

What a worker says becomes events here; what it made stays in `generated` until the run takes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wan_compat.policies.limits import Deadlines
from wan_compat.policies.pace import Pace
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import DeadlineExceeded, GenerationFailed, JobCancelled, JobTimeout, from_worker
from wan_compat.protocol.values import MAX_STEPS, GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.job_context import JobContext, narrower
from wan_compat.supervisor.worker import Heard, Worker


class JobWatch:
    """Belongs to the run of one job.

    Attributes:
        phase: What is done now.
        denoised: The last step of denoising is over.
        generated: What the worker said when all frames were out; at most one, in a list, because a type checker takes
            an attribute set to None for None until the end of a function.
        preview: Writes a picture of latents into the preview folder.
    """

    def __init__(self, request: GenerationRequest, context: JobContext) -> None:
        self._request, self._context = request, context
        self.started = time.monotonic()
        self.timeout_s = narrower(request.timeout_s, context.policy.timeout_s)
        self.phase = "prepare"
        self._pace = Pace()
        self.warnings: list[str] = []
        self.denoised = False
        self.generated: list[m.Generated] = []
        self.preview: Callable[[int, bytes, int, int], str | None] | None = None

    def pump(self, worker: Worker, limits: Deadlines, until: float, write: list[int] | None = None) -> Heard:
        """Wait for the worker for a moment, under the deadlines of the phase and of the job."""
        heard = worker.pump(0.5, limits.silence_s, read=[self._context.wake_fd], write=write or [])
        for what in heard.unusual:
            self._context.emit(ev.Unusual(worker.name, what))
        self.check_stop()
        if (stalled := self._pace.stalled_s(time.monotonic())) is not None:
            raise DeadlineExceeded(
                f"a step of {self.phase} has not ended after {stalled:.0f} s, far longer than those before it",
                hint="see whether the machine swaps or something else takes it, and try again",
            )
        if time.monotonic() > until:
            raise DeadlineExceeded(
                f"{self.phase} took longer than allowed", hint="allow more with --timeout, or ask for fewer frames"
            )
        return heard

    def interrupted(self) -> bool:
        """Return whether the job was cancelled; raise JobTimeout when its whole time is over."""
        total = self.timeout_s
        if total is not None and time.monotonic() - self.started > total:
            raise JobTimeout(
                f"the job took longer than {total:g} s (during {self.phase})",
                hint="allow more with --timeout, or ask for fewer frames or steps",
            )
        return self._context.cancelled()

    def check_stop(self) -> None:
        """Raise what ends the job; for where something else than the worker is waited for."""
        if self.interrupted():
            raise JobCancelled(f"cancelled during {self.phase}")

    def hear(self, message: object) -> None:
        if isinstance(message, m.Progress):
            self.denoised = self.denoised or (message.phase == "denoise" and message.step == message.total)
            if message.phase != self.phase:
                self.enter(message.phase)
            pace = self._pace.progress(message.phase, message.step, message.total, time.monotonic())
            self._context.emit(
                ev.Progress(message.phase, message.step, message.total, pace.rate_s, pace.eta_s, message.timestep)
            )
            if message.picture is not None and self._request.preview_latents and message.phase == "denoise":
                self._show_latents(message.step, message.picture)
        elif isinstance(message, m.Failed):
            raise from_worker(message.code, message.message, message.fixes, message.component)
        elif isinstance(message, m.Generated):
            self.generated.append(message)
        elif isinstance(message, m.Cancelled):
            raise GenerationFailed("the worker stopped by itself")

    def _show_latents(self, step: int, picture: m.Picture) -> None:
        import base64

        pixels = base64.b64decode(picture.pixels)
        # Padding can say otherwise than the length did; and no job has more steps, whatever its worker counts.
        if len(pixels) != picture.width * picture.height * 3 or step > MAX_STEPS:
            return
        path = self.preview(step, pixels, picture.width, picture.height) if self.preview is not None else None
        self._context.emit(ev.LatentPreview(step, picture.width, picture.height, pixels, path))

    def warn(self, message: str) -> None:
        if message in self.warnings:  # by an earlier attempt
            return
        self.warnings.append(message)
        self._context.emit(ev.Warned(message))

    def enter(self, phase: ev.PhaseName) -> None:
        self.phase = phase
        self._pace.start(phase, time.monotonic())
        self._context.emit(ev.PhaseStarted(phase))

    def failed_in(self) -> str:
        """The phase of a failure. Nothing tells that decoding began before its first frame is there."""
        return "decode" if self.phase == "denoise" and self.denoised else self.phase
