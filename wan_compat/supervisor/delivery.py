"""Delivery: from frames as they come to a file that is whole, read back and has its name; or to where the frames are.

    prepare_delivery   everything that can refuse: format, size, sound, folders, ffmpeg; makes the part
    start              encoder (or our own writer) and spill
    write_some         a frame's bytes to both, and to the pictures on the side; never blocks on the encoder
    finish             end of input, read back; if the encoder failed: once more from the spill
    commit             the name, the sidecar

When the encoder cannot do it, the frames do not get lost with it: frame_rescue.py makes the video in another way, or
keeps them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from wan_compat.policies.encoding import EncodingConfig, VideoFacts, Writer, plan_encoding, suffix_of
from wan_compat.protocol.errors import EncodingFailed, InvalidRequest, WanCompatError
from wan_compat.protocol.results import OutputReport
from wan_compat.protocol.values import FrameSpec
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.encoded_stream import FAILURES, EncodedStream
from wan_compat.supervisor.encoder import EncoderProcess
from wan_compat.supervisor.frame_files import NpyWriter, PngWriter
from wan_compat.supervisor.frame_rescue import FrameRescue
from wan_compat.supervisor.frame_tap import FrameTap
from wan_compat.supervisor.output_folder import FolderTarget, prepare_folder
from wan_compat.supervisor.outputs import OutputTarget, prepare_output
from wan_compat.supervisor.read_back import output_report
from wan_compat.supervisor.rescue import PlanCodec, with_encoder
from wan_compat.supervisor.sound import check_sound
from wan_compat.supervisor.spill import Spill, reserve_spill

# No byte taken by the encoder for this long, with frames waiting, means it hangs.
STALL_S = 120.0


def prepare_delivery(
    output: str | os.PathLike[str],
    frames: FrameSpec,
    fps: float,
    options: VideoOptions | None = None,
    *,
    overwrite: bool = False,
) -> Delivery:
    """Check everything about an output that can be checked before there are frames, and reserve it.

    Args:
        output: A file, or for pictures a folder; its suffix or `options.format` says what.

    Raises:
        InvalidRequest: What was asked for cannot be.
        OutputExists, OutputNotWritable, DiskExceeded: There is no place for it.
        FfmpegMissing, EnvironmentLacks: ffmpeg is needed, and is not there or lacks the codec.
    """
    options = options or VideoOptions()
    path = os.fspath(output)
    suffix = suffix_of(os.path.basename(path), options.format)
    try:
        config = plan_encoding(frames.width, frames.height, fps, suffix, options, num_frames=frames.num_frames)
    except InvalidRequest:
        if not path or "\0" in path:
            raise InvalidRequest(f"{path!r} is not the name of a file") from None
        raise
    plan: PlanCodec | None = None
    if options.codec is None:

        def plan(codec: str) -> EncodingConfig:
            asked = options.model_copy(update={"codec": codec})
            return plan_encoding(frames.width, frames.height, fps, suffix, asked, num_frames=frames.num_frames)

    if options.audio is not None:
        config.additional_params["audio"] = check_sound(options.audio)
    target: OutputTarget | FolderTarget
    target = prepare_folder(path) if config.is_sequence else prepare_output(path, overwrite)
    with contextlib.ExitStack() as stack:
        stack.push(target)
        if config.format.writer is Writer.FFMPEG:
            config = with_encoder(config, plan)
        sidecar.check_free(sidecar.path_of(target.path), overwrite)
        tap = FrameTap(options, frames, target.path)
        stack.pop_all()
    delivery = Delivery(config, frames, target, tap, overwrite)
    delivery.plan_codec = plan
    return delivery


class Delivery:
    """One output on its way; a FrameSink. Use it as a context manager: leaving removes what was not committed.

    Attributes:
        config: How it is encoded.
        path, part_path: The final name, and what is removed if it never gets it.
        warnings: What a person should know about the outcome.
        recovery: Failures that were survived: `error`, `action`, `outcome`.
    """

    def __init__(
        self,
        config: EncodingConfig,
        frames: FrameSpec,
        target: OutputTarget | FolderTarget,
        tap: FrameTap,
        overwrite: bool,
    ) -> None:
        self.frames = frames
        self._stream = EncodedStream(config, frames, target.part_path)
        self.warnings = list(config.reasons)
        self.recovery: list[dict[str, str]] = []
        self.plan_codec: PlanCodec | None = None  # None where a codec was asked for by name
        self.note_spill: Callable[[str], None] = lambda _path: None  # told of a file that must not outlive the job
        self._target = target
        self.check_stop: Callable[[], None] = lambda: None  # raises what ends the job, while the encoder is waited for
        self._tap = tap
        self._overwrite = overwrite
        self._sink: EncoderProcess | NpyWriter | PngWriter | None = None
        self._spill: Spill | None = None
        self._failure: WanCompatError | None = None
        self._facts: VideoFacts | None = None
        self._moved_at = time.monotonic()

    @property
    def config(self) -> EncodingConfig:
        return self._stream.config

    @property
    def path(self) -> str:
        return self._target.path

    @property
    def part_path(self) -> str:
        return self._target.part_path

    @property
    def announce_preview(self) -> Callable[[str, int], None]:
        return self._tap._announce

    @announce_preview.setter
    def announce_preview(self, announce: Callable[[str, int], None]) -> None:
        self._tap._announce = announce

    def show_latents(self, step: int, pixels: bytes, width: int, height: int) -> str | None:
        """Put a picture of latents into the preview folder, if there is one; return its path."""
        return self._tap.show_latents(step, pixels, width, height)

    def start(self, label: str = "") -> None:
        """Start what takes the frames. `label` goes into the file where it has a place for one."""
        if label and (self.config.format.comment or self.config.format.writer is Writer.PNG):
            self.config.additional_params["comment"] = label
        if self.config.format.writer is Writer.NPY:
            # It is its own copy, with all its room claimed now: what can fail later is the disk itself.
            self._sink = NpyWriter(self._stream.path, self.frames, reserve=True)
        else:
            self._reserve_copy()
            try:
                if self.config.format.writer is Writer.PNG:
                    self._sink = PngWriter(self._stream.path, self.frames, comment=label)
                else:
                    self._sink = self._stream.spawn(self.check_stop)
            except FAILURES as error:
                self._give_up(error)
        self._moved_at = time.monotonic()

    def _reserve_copy(self) -> None:
        self._spill = reserve_spill(self.path, self.frames)
        if self._spill is not None:
            self.note_spill(self._spill.path)
            return
        what = "the disk fills up" if self.config.format.writer is Writer.PNG else "the encoder fails"
        self.warnings.append(f"there is no room for a copy of the frames: if {what}, they are lost")

    # -- a FrameSink ---------------------------------------------------------------------------------------------

    def write_some(self, view: memoryview) -> int:
        """Take as many bytes as possible without waiting; 0 when the encoder is busy."""
        count = 0
        if self._failure is None:
            assert self._sink is not None, "start was not called"
            try:
                count = self._sink.write_some(view)
                if not count and time.monotonic() - self._moved_at > STALL_S:
                    raise EncodingFailed(f"ffmpeg took no data for {STALL_S:g} s", hint="try again, or another disk")
            except FAILURES as error:
                self._give_up(error)
        if self._failure is not None:
            count = len(view)
        if count:
            self._moved_at = time.monotonic()
            self._copy(view[:count])
            self._tap.take(view[:count])
        return count

    def fileno(self) -> int:
        return -1 if self._failure is not None or self._sink is None else self._sink.fileno()

    def raise_if_ended(self) -> None:
        """Notice an encoder that died while there was nothing to write. Raises only where the frames have no copy."""
        self._moved_at = self._moved_at if self._sink else time.monotonic()
        if self._failure is None and self._sink is not None:
            try:
                self._sink.raise_if_ended()
            except FAILURES as error:
                self._give_up(error)

    def idle(self) -> None:
        """No frame is waiting: the encoder is not to blame for taking none."""
        self._moved_at = time.monotonic()

    # -- the end -------------------------------------------------------------------------------------------------

    def finish(self, timeout_s: float) -> None:
        """End the input and read the result back; blocks. After a failure, encode once more from the copy.

        Raises:
            WanCompatError: There is no video. `details["kept"]` says where the frames are, if they could be kept.
        """
        if self._failure is None:
            assert self._sink is not None
            try:
                self._sink.finish(timeout_s)
                self._facts = self._stream.read_back()
            except FAILURES as error:
                if self._spill is None:
                    raise
                self._give_up(error)
        if self._failure is not None:
            if self._spill is None or not self._spill.complete:
                raise self._failure
            rescue = FrameRescue(
                self._stream,
                self._spill,
                self.path,
                self.plan_codec,
                self.check_stop,
                self.warnings,
                self.recovery,
            )
            self._facts = rescue.rescue(self._failure)
            self._failure = None

    def commit(self) -> OutputReport:
        """Give the output its name, then write the pictures on the side."""
        assert self._facts is not None, "finish was not called"
        committed = self._target.commit()
        with self._only_a_warning("a picture beside the video"):
            self._tap.write(self._overwrite)
        return output_report(self.path, self.config, self._facts, committed)

    def write_sidecar(self, document: dict[str, Any], report: OutputReport) -> None:
        """Write the sidecar of a committed output. What goes wrong is a warning: the video stands."""
        with self._only_a_warning("the sidecar"):
            sidecar.write(sidecar.path_of(self.path), document, report)

    def close(self) -> None:
        """Kill what still runs, remove what was not committed. Any number of times."""
        try:
            if isinstance(self._sink, EncoderProcess):
                self._sink.kill()
            elif self._sink is not None:
                self._sink.close()
        finally:
            if self._spill is not None:
                self._spill.close()
            self._target.abort()

    def __enter__(self) -> Delivery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside --------------------------------------------------------------------------------------------------

    def _copy(self, view: memoryview) -> None:
        if self._spill is None:
            return
        try:
            self._spill.write_all(view)
        except WanCompatError as error:
            self._spill.close()
            self._spill = None
            if self._failure is not None:
                raise self._failure from error
            self.warnings.append(f"the copy of the frames was given up: {error.message}")

    def _give_up(self, error: WanCompatError) -> None:
        """Go on without the encoder, if there is a copy of the frames so far."""
        if isinstance(self._sink, EncoderProcess):
            self._sink.kill()
        if self._spill is None:
            raise error
        self._failure = error

    @contextlib.contextmanager
    def _only_a_warning(self, what: str) -> Any:
        try:
            yield
        except (WanCompatError, OSError) as error:
            self.warnings.append(f"{what} could not be written: {error}")
