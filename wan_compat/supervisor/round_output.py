"""Where the videos of one round go: each to a sink of its own, one after the other, and each stands before the next.

    reserve   every name of the round, before a worker is asked for anything
    begin     start what takes the frames of the next video
    end       whole and read back: the file gets its name, or the frames are ready; what fails later does not touch it

One round is one order to a worker; mostly that is one video (policies/videos.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from wan_compat.policies.requests import ResolvedRequest
from wan_compat.policies.videos import Round, output_of, outputs_of
from wan_compat.protocol.results import OutputReport, ProcessedFrames
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.frame_sink import FrameSink, FramesInMemory
from wan_compat.supervisor.job_context import JobContext
from wan_compat.supervisor.job_watch import JobWatch

if TYPE_CHECKING:
    from wan_compat.supervisor.delivery import Delivery


@dataclasses.dataclass(frozen=True)
class TakenVideo:
    """One video that stands. `number`: in its job, from 0; `encode_s`: from its first frame to the finished file."""

    number: int
    frames: ProcessedFrames | None
    output: OutputReport | None
    delivery: Delivery | None
    recovery: list[dict[str, str]]
    warnings: tuple[str, ...] = ()
    encode_s: float = 0.0


class RoundOutput:
    """Use it as a context manager: leaving removes what does not stand.

    Args:
        label: Returns the text that goes into the file of a video.

    Attributes:
        videos: Those to take.
        taken: Those that stand, in their order.
    """

    def __init__(
        self,
        request: GenerationRequest,
        resolved: ResolvedRequest,
        videos: Round,
        watch: JobWatch,
        context: JobContext,
        label: Callable[[int], str],
    ) -> None:
        self._request, self._resolved, self.videos = request, resolved, videos
        self._watch, self._context, self._label = watch, context, label
        self.taken: list[TakenVideo] = []
        self._deliveries: dict[int, Delivery] = {}
        self._memory: FramesInMemory | None = None
        self._told = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RoundOutput:
        with contextlib.ExitStack() as stack:
            if self._request.output is not None and not self._request.load_only:
                for number in self.videos:
                    self._deliveries[number] = self._reserve(stack, number)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def number(self) -> int:
        """The video that is being taken."""
        return self.videos.first + len(self.taken)

    def begin(self) -> FrameSink:
        """Start what takes the frames of the next video."""
        spec, delivery = self._resolved.params.frames, self._deliveries.get(self.number)
        self._watch.video = self.number
        if delivery is None:
            self._memory = FramesInMemory(spec.frame_bytes * spec.num_frames)
            return self._memory
        self._watch.preview = delivery.show_latents
        delivery.start(self._label(self.number))
        self._told = 0
        self._tell(delivery)
        return delivery

    def end(self, first_frame: float, timeout_s: float, check: Callable[[], None]) -> None:
        """Finish the video whose frames were all written.

        Args:
            first_frame: When its first one was.
            timeout_s: For the encoder's last work.
            check: Raises what forbids to keep it; called when nothing else can fail any more.

        Raises:
            WanCompatError: There is no such video.
        """
        number, delivery = self.number, self._deliveries.get(self.number)
        if delivery is None:
            check()
            assert self._memory is not None
            self.taken.append(TakenVideo(number, self._memory.frames(self._resolved), None, None, []))
            self._memory = None
            return
        self._watch.enter("encode")
        delivery.finish(timeout_s)
        self._watch.rest()
        self._tell(delivery)
        check()
        output = delivery.commit()
        self._tell(delivery)
        encode_s = time.monotonic() - first_frame
        recovery, warnings = list(delivery.recovery), tuple(delivery.warnings)
        self.taken.append(TakenVideo(number, None, output, delivery, recovery, warnings, encode_s))
        self._context.emit(ev.Encoded(output.path, number))

    def _reserve(self, stack: contextlib.ExitStack, number: int) -> Delivery:
        from wan_compat.supervisor.delivery import prepare_delivery

        request, resolved, context = self._request, self._resolved, self._context
        assert request.output is not None
        delivery = stack.enter_context(
            prepare_delivery(
                output_of(request.output, number, request.num_videos),
                resolved.params.frames,
                resolved.fps,
                _with_preview(request, number),
                overwrite=request.overwrite,
            )
        )
        stack.enter_context(context.pool.leftover(delivery.part_path))
        delivery.note_spill = lambda path: self._stack.enter_context(context.pool.leftover(path))
        delivery.check_stop = self._watch.check_stop
        delivery.announce_preview = lambda path, index: context.emit(ev.Preview(path, index, number))
        return delivery

    def _tell(self, delivery: Delivery) -> None:
        for warning in delivery.warnings[self._told :]:
            self._watch.tell(warning)
        self._told = len(delivery.warnings)


def check_places(request: GenerationRequest, resolved: ResolvedRequest) -> None:
    """See before anything is made whether each of several videos has a place; nothing stays behind.

    Raises:
        WanCompatError: As `prepare_delivery`, for the first that has none.
    """
    if request.output is None or request.load_only or request.num_videos == 1:
        return
    from wan_compat.supervisor.delivery import prepare_delivery

    # Without a preview, whose folders would be made, and sound, which is looked at with the first video.
    options = request.model_copy(update={"preview": None, "audio": None})
    for path in outputs_of(request.output, request.num_videos):
        prepare_delivery(path, resolved.params.frames, resolved.fps, options, overwrite=request.overwrite).close()


def _with_preview(request: GenerationRequest, number: int) -> GenerationRequest:
    """Return the request with a preview folder for one video: pictures are named after frames, of which each has its
    own first one."""
    if request.preview is None or request.num_videos == 1:
        return request
    from wan_compat.supervisor.frame_tap import check_preview_folder

    folder = check_preview_folder(request.preview)
    name = os.path.basename(output_of("video", number, request.num_videos))
    return request.model_copy(update={"preview": os.path.join(folder, name)})
