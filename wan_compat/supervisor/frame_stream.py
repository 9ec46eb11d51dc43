"""The frames of one order on their way, from the worker's ring to the video that each belongs to, one by one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import CorruptFrame
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.frame_sink import FrameSink
from wan_compat.supervisor.job_watch import JobWatch
from wan_compat.supervisor.round_output import RoundOutput
from wan_compat.supervisor.worker import Worker


class FrameStream:
    """One order, which is about to be given.

    Args:
        spec: Of each video.
        sink: Of the first one; its frames go there.
        emit: Told of the first frame of each.
        end: Finishes the video whose frames are all written; called with the moment of its first one.
    """

    def __init__(
        self,
        worker: Worker,
        spec: FrameSpec,
        outputs: RoundOutput,
        sink: FrameSink,
        watch: JobWatch,
        emit: Callable[[ev.Event], None],
        end: Callable[[float], None],
    ) -> None:
        self._worker, self._ring, self._spec = worker, worker.ring, spec
        self._outputs, self._sink = outputs, sink
        self._watch, self._emit, self._end = watch, emit, end
        self._began = time.monotonic()
        self._first: float | None = None  # of this video
        self._frames = self._offset = 0  # of it that were taken, and bytes of the next one

    def run(self) -> m.Generated:
        """Take all frames; return what the worker said when they were out. The last video is still without its end.

        Raises:
            WanCompatError: What the worker reports, what ends the job or a sink.
        """
        ring, watch = self._ring, self._watch
        while not (watch.generated and ring.complete):
            waiting = ring.published > ring.consumed
            write = [self._sink.fileno()] if waiting and self._sink.fileno() >= 0 else []
            heard = watch.pump(self._worker, write)
            for message in heard.messages:
                watch.hear(message)
            self._sink.raise_if_ended()
            while ring.published > ring.consumed and self._take():
                pass
            if watch.generated and ring.published < ring.expected:
                raise CorruptFrame(f"the worker finished after {ring.published} of {ring.expected} frames")
            if ring.published == ring.consumed:
                self._sink.idle()
        ring.end()
        watch.rest()
        return watch.generated[0]

    def finish(self) -> None:
        """End the last video."""
        assert self._first is not None
        self._end(self._first)

    def _take(self) -> bool:
        """Move what the sink takes of the next frame; return whether it took anything."""
        if self._frames == self._spec.num_frames:
            self._next_video()
        with self._ring.front() as frame, frame[self._offset :] as rest:
            taken = self._sink.write_some(rest)
        self._offset += taken
        if self._offset == self._spec.frame_bytes:
            self._offset = 0
            self._frames += 1
            if self._first is None:
                self._note_first()
            self._ring.release()
            self._ring.collect()
        return taken > 0

    def _next_video(self) -> None:
        # The first frame of the next video is the worker's word that this one is good.
        self.finish()
        self._sink, self._first, self._frames = self._outputs.begin(), None, 0
        self._worker.listen_again()
        self._watch.enter("decode")

    def _note_first(self) -> None:
        self._first = time.monotonic()
        self._emit(ev.FirstFrame(self._first - self._began, self._watch.video))
        if not self._outputs.taken:
            timings = dataclasses.replace(self._watch.timings, first_frame_s=self._first - self._began)
            self._watch.timings = timings
