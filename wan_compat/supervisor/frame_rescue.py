"""Frames whose encoder failed, from their copy on disk: a video in another way, or kept where a person can finish it.

    again     the same, then other codecs, on another disk (rescue.py knows how)
    kept      a folder of PNG pictures beside the output, or the copy itself where even that has no room

The error says where they are, and which command finishes the video.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shlex
import time
from collections.abc import Callable, Iterable, Iterator

from wan_compat.policies.encoding import CODECS, EncodingConfig, VideoFacts, Writer
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    DiskExceeded,
    EnvironmentLacks,
    JobCancelled,
    SandboxEntryFailed,
    WanCompatError,
)
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.encoded_stream import FAILURES, EncodedStream
from wan_compat.supervisor.encoder import EncoderProcess, spawn_encoder
from wan_compat.supervisor.frame_files import PngWriter
from wan_compat.supervisor.output_folder import prepare_folder
from wan_compat.supervisor.read_back import verify_video
from wan_compat.supervisor.rescue import PlanCodec, make_room, other_codecs, room_elsewhere
from wan_compat.supervisor.spill import Spill

RETRY_TIMEOUT_S = 1800.0
STOP_POLL_S = 0.2  # how often somebody's wish to stop is asked for while an encoder takes nothing

# Where trying the same once more is in vain.
_HOPELESS = (DiskExceeded, SandboxEntryFailed, EnvironmentLacks)


class FrameRescue:
    """
    Args:
        stream: What is written; has another codec afterwards, where that is what helped.
        spill: The copy of all frames.
        path: The output's name.
        plan_codec: None where a codec was asked for by name.
        check_stop: Raises what ends the job; asked all the while.
        warnings, recovery: Get what a person should know, and each failure with what was done about it.
    """

    def __init__(
        self,
        stream: EncodedStream,
        spill: Spill,
        path: str,
        plan_codec: PlanCodec | None,
        check_stop: Callable[[], None],
        warnings: list[str],
        recovery: list[dict[str, str]],
    ) -> None:
        self._stream, self._spill, self._path = stream, spill, path
        self._frames = stream.frames
        self._plan_codec, self._check_stop = plan_codec, check_stop
        self._warnings, self._recovery = warnings, recovery

    def rescue(self, failure: WanCompatError) -> VideoFacts:
        """Make the video from the copy; return what is in it.

        Raises:
            WanCompatError: There is none. `details["kept"]` says where the frames are.
        """
        spill = self._spill
        for action, encode in self._other_ways(failure):
            try:
                facts = encode(spill)
                self._recovered(failure, action, "succeeded")
                return facts
            except FAILURES as again:
                self._recovered(failure, action, f"failed: {again.message}")
                if "kept" in again.details:
                    raise
                failure = again
        kept = self._keep_frames(spill)
        self._recovered(failure, "kept the frames", kept)
        finish = f"wan-compat encode {shlex.quote(kept)} --output {shlex.quote(self._path)}"
        if self._config.is_sequence:  # whose name does not say in which format
            finish += f" --format {self._config.format.name}"
        error = type(failure)(
            f"{failure.message}; all {self._frames.num_frames} frames are kept in {kept!r}",
            fixes=(f"finish the video: {finish}", *failure.fixes),
            details=failure.details | {"kept": kept, "finish": finish, "recovery": self._recovery},
        )
        raise error from failure

    def _other_ways(self, failure: WanCompatError) -> Iterator[tuple[str, Callable[[Spill], VideoFacts]]]:
        """Yield what can be tried with the copy of the frames: in words, and the act."""
        if self._config.format.writer is not Writer.FFMPEG:
            return  # what ended our own writer is the disk
        if isinstance(failure, DiskExceeded) and not self._config.is_sequence:
            yield (
                "encoded on another disk from the kept frames, and moved when their room was free",
                self._encode_elsewhere,
            )
        if isinstance(failure, _HOPELESS):
            return
        yield "encoded again from the kept frames", self._encode_again
        for other in other_codecs(self._config, self._plan_codec) if self._plan_codec is not None else ():
            named = CODECS[other.codec].label
            yield f"encoded as {named}, which not every player has", functools.partial(self._encode_as, other)

    @property
    def _config(self) -> EncodingConfig:
        return self._stream.config

    def _encode_as(self, config: EncodingConfig, spill: Spill) -> VideoFacts:
        before, self._stream.config = self._stream.config, config
        try:
            facts = self._encode_again(spill)
        except BaseException:
            self._stream.config = before
            raise
        failed, made = CODECS[before.codec].label, CODECS[config.codec].label
        self._warnings.append(f"the video is {made}, because the encoder of {failed} failed")
        return facts

    def _encode_elsewhere(self, spill: Spill) -> VideoFacts:
        """Encode where there is room. The copy of the frames may be what fills the output's disk: it goes when there is
        a video that was read back."""
        with room_elsewhere(self._path) as place:
            if place is None:
                raise DiskExceeded("no other disk has room", hint="free some space")
            encoder = spawn_encoder(self._config, self._frames.num_frames, place)
            encoder.check_stop = self._check_stop
            self._give_copy(encoder, spill)
            facts = verify_video(place, self._config, self._frames.num_frames)
            make_room(place, self._stream.path, spill)
        return facts

    def _encode_again(self, spill: Spill) -> VideoFacts:
        self._give_copy(self._stream.spawn(self._check_stop), spill)
        return self._stream.read_back()

    def _give_copy(self, encoder: EncoderProcess, spill: Spill) -> None:
        # Closed here: an error's traceback would keep the file open for as long as somebody keeps the error.
        with encoder, contextlib.closing(spill.frames()) as frames:
            feed(encoder, self._stoppable(frames), RETRY_TIMEOUT_S)
            encoder.finish(RETRY_TIMEOUT_S)

    def _stoppable(self, frames: Iterable[memoryview]) -> Iterator[memoryview]:
        for frame in frames:
            self._check_stop()
            yield frame

    def _keep_frames(self, spill: Spill) -> str:
        """Turn the copy into a folder of pictures, or let it stay what it is; return where the frames are."""
        folder = f"{self._path}.frames"
        number = 2
        while os.path.lexists(folder):
            folder, number = f"{self._path}.frames-{number}", number + 1
        document = {"frames": {"fps": self._config.fps, "wanted": os.path.basename(self._path)}}
        try:
            size = self._frames.frame_bytes * self._frames.num_frames
            with prepare_folder(folder, min_free_bytes=size) as target:
                writer = PngWriter(target.part_path, self._frames)
                for frame in self._stoppable(spill.frames()):
                    view = frame
                    while view:
                        view = view[writer.write_some(view) :]
                target.commit()
            kept = target.path
        except JobCancelled:
            raise
        except WanCompatError:
            kept = spill.keep(f"{folder}.npy")
        try:
            sidecar.write(sidecar.path_of(kept), document, None)
        except (WanCompatError, OSError) as error:
            self._warnings.append(f"the sidecar of the frames could not be written: {error}")
        return kept

    def _recovered(self, failure: WanCompatError, action: str, outcome: str) -> None:
        self._recovery.append({"error": failure.message, "action": action, "outcome": outcome})


def feed(sink: EncoderProcess, frames: Iterable[memoryview], timeout_s: float) -> None:
    """Give an encoder all frames, waiting for it.

    Raises:
        DeadlineExceeded: It takes longer than `timeout_s`.
        WanCompatError: What `sink.check_stop` raises; it is asked all the while.
    """
    deadline_s = time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(sink.fileno(), select.POLLOUT)
    for frame in frames:
        view = memoryview(frame).cast("B")
        while view:
            written = sink.write_some(view)
            view = view[written:]
            sink.check_stop()
            left_s = deadline_s - time.monotonic()
            if view and not written:
                if left_s <= 0:
                    raise DeadlineExceeded(f"the encoder took no frame within {timeout_s:g} s")
                poller.poll(min(left_s, STOP_POLL_S) * 1000 + 1)
