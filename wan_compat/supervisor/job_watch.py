"""Where one job stands while its worker is waited for: its phase and pace, its warnings, and what may end it meanwhile.

What a worker says becomes events here; what it made stays in `generated` until the run takes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wan_compat.policies.limits import Deadlines
from wan_compat.policies.pace import Pace
from wan_compat.policies.phases import PhaseClock
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    GenerationFailed,
    JobCancelled,
    JobTimeout,
    WorkerStalled,
    from_worker,
)
from wan_compat.protocol.results import Timings
from wan_compat.protocol.values import MAX_STEPS, GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.job_context import JobContext, narrower
from wan_compat.supervisor.phase_timeout import phase_timeout
from wan_compat.supervisor.worker import Heard, Worker


class JobWatch:
    """Belongs to the run of one job.

    Attributes:
        phase: What is done now.
        video: Which video of the job it is done for, from 0.
        timings: What each part of the video that is being made has taken so far.
        denoised: The last step of denoising is over.
        generated: What the worker said when all frames were out; at most one, in a list, because a type checker takes
            an attribute set to None for None until the end of a function.
        warnings: Those of the job as a whole; what concerns one video is its own (round_output.py).
        limits: The deadlines; those of the built-in kind until `keep_to`.
        preview: Writes a picture of latents into the preview folder.
    """

    def __init__(self, request: GenerationRequest, context: JobContext) -> None:
        self._request, self._context = request, context
        self.started = time.monotonic()
        self.timeout_s = narrower(request.timeout_s, context.policy.timeout_s)
        self.phase = "prepare"
        self.video = 0
        self.limits = Deadlines()
        self._clock = PhaseClock(self.limits)
        self._pace = Pace()
        self._said: m.Progress | None = None  # of the order that the worker has
        self.warnings: list[str] = []
        self._told: set[str] = set()
        self.timings = Timings()
        self.denoised = False
        self.generated: list[m.Generated] = []
        self.preview: Callable[[int, bytes, int, int], str | None] | None = None

    def keep_to(self, limits: Deadlines) -> None:
        """From now on these are the deadlines."""
        self.limits = limits
        self._clock = PhaseClock(limits)

    def pump(self, worker: Worker, write: list[int] | None = None) -> Heard:
        """Wait for the worker for a moment, under the deadlines of the phase and of the job."""
        limits = self.limits
        heard = worker.pump(
            0.5, limits.silence_s, read=[self._context.wake_fd], write=write or [], stall_s=limits.stall_s
        )
        for what in heard.unusual:
            self._context.emit(ev.Unusual(worker.name, what))
        self.check_stop()
        if (stalled := self._pace.stalled_s(time.monotonic())) is not None:
            raise WorkerStalled(
                f"a step of {self.phase} has not ended after {stalled:.0f} s, far longer than those before it",
                hint="see whether the machine swaps or something else takes it, and try again",
                details={"stalled_s": round(stalled, 1)},
            )
        return heard

    def interrupted(self) -> bool:
        """Return whether the job was cancelled; raise JobTimeout or PhaseTimeout when a time is over."""
        total = self.timeout_s
        now = time.monotonic()
        if total is not None and now - self.started > total:
            raise JobTimeout(
                f"the job took longer than {total:g} s (during {self.phase})",
                hint="allow more with --timeout, or ask for fewer frames or steps",
            )
        if (overdue := self._clock.overdue(now)) is not None:
            asked, settings = self._request.phase_timeouts, self._context.policy.phase_timeouts
            raise phase_timeout(overdue, asked, settings, self._said)
        return self._context.cancelled()

    def check_stop(self) -> None:
        """Raise what ends the job; for where something else than the worker is waited for."""
        if self.interrupted():
            raise JobCancelled(f"cancelled during {self.phase}")

    def hear(self, message: object) -> None:
        if isinstance(message, m.Progress):
            self.denoised = self.denoised or (message.phase == "denoise" and message.step == message.total)
            if message.phase != self.phase:
                self._show(message.phase)
            now = time.monotonic()
            pace = self._pace.progress(message.phase, message.step, message.total, now)
            self._time(message, now)
            self._context.emit(
                ev.Progress(
                    message.phase, message.step, message.total, pace.rate_s, pace.eta_s, message.timestep, self.video
                )
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
        self._context.emit(ev.LatentPreview(step, picture.width, picture.height, pixels, path, self.video))

    def warn(self, message: str) -> None:
        """Note what is true of every video of the job, and tell it."""
        if message not in self.warnings:
            self.warnings.append(message)
        self.tell(message)

    def tell(self, message: str) -> None:
        """Tell a warning, unless it was told before: by an earlier attempt, or of another video."""
        if message not in self._told:
            self._told.add(message)
            self._context.emit(ev.Warned(message))

    def enter(self, phase: ev.PhaseName) -> None:
        """Begin a phase, or order what begins with it: its time starts."""
        self._show(phase)
        self._said = None
        self._clock.begin(phase, time.monotonic())

    def expect_first_step(self, seconds: float) -> None:
        """The first denoising step of the order that was just given is over before that."""
        self._clock.expect_first("denoise", seconds)

    def rest(self) -> None:
        """Nothing is timed until the next `enter`, but for the whole job."""
        self._clock.rest()

    def _show(self, phase: ev.PhaseName) -> None:
        self.phase = phase
        self._pace.start(phase, time.monotonic())
        self._context.emit(ev.PhaseStarted(phase, self.video))

    def _time(self, message: m.Progress, now: float) -> None:
        """Charge the time until this step's end to its phase, and what follows the last one to the next phase."""
        self._said = message
        following = {"text_encode": "denoise", "denoise": "decode"} if message.step >= message.total else {}
        self._clock.stepped(message.phase, following.get(message.phase, message.phase), now)
        if message.phase in ("denoise", "decode") and (whole_s := self._pace.whole_s()) is not None:
            self._clock.expect(message.phase, whole_s, now)

    def failed_in(self) -> str:
        """The phase of a failure. Nothing tells that decoding began before its first frame is there."""
        return "decode" if self.phase == "denoise" and self.denoised else self.phase
