"""Delivery: from frames as they come to a file that is whole, read back and has its name; or to where the frames are.

    prepare_delivery   everything that can refuse: format, size, sound, folders, ffmpeg; makes the part
    start              encoder (or our own writer) and spill
    write_some         a frame's bytes to both, and to the pictures on the side; never blocks on the encoder
    finish             end of input, read back; if the encoder failed: once more from the spill
    commit             the name, the sidecar

When no encoder can do it, an MP4 or QuickTime file is written without one (own_video.py). Else the frames do not get
lost with it: they become a folder of PNG pictures beside the output, or stay in the spill where even that has no room.
The error says where, and which command finishes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import select
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from wan_compat.policies.encoding import CODECS, EncodingConfig, VideoFacts, Writer, plan_encoding, suffix_of
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    DiskExceeded,
    EncodingFailed,
    EnvironmentLacks,
    InvalidRequest,
    JobCancelled,
    MemoryExceeded,
    SandboxEntryFailed,
    WanCompatError,
)
from wan_compat.protocol.results import OutputReport
from wan_compat.protocol.values import FrameSpec
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.encoder import EncoderProcess, spawn_encoder
from wan_compat.supervisor.frame_files import NpyWriter, PngWriter, disk_error, picture_name
from wan_compat.supervisor.frame_tap import FrameTap
from wan_compat.supervisor.output_folder import FolderTarget, prepare_folder
from wan_compat.supervisor.outputs import OutputTarget, prepare_output
from wan_compat.supervisor.own_video import CONTAINERS, write_png_video
from wan_compat.supervisor.read_back import output_report, verify_video
from wan_compat.supervisor.rescue import PlanCodec, make_room, other_codec, room_elsewhere, with_encoder
from wan_compat.supervisor.sound import check_sound
from wan_compat.supervisor.spill import Spill, reserve_spill

# No byte taken by the encoder for this long, with frames waiting, means it hangs.
STALL_S = 120.0
RETRY_TIMEOUT_S = 1800.0
STOP_POLL_S = 0.2  # how often somebody's wish to stop is asked for while an encoder takes nothing

# What an encoder can die of. Everything else is a bug, or somebody's wish to stop.
_FAILURES = (EncodingFailed, DiskExceeded, MemoryExceeded, SandboxEntryFailed, EnvironmentLacks, DeadlineExceeded)
# Where trying the same once more is in vain.
_HOPELESS = (DiskExceeded, SandboxEntryFailed, EnvironmentLacks)


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
        self.config = config
        self.frames = frames
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
            self._sink = NpyWriter(self._stream_path, self.frames)
        elif self.config.format.writer is Writer.PNG:
            self._sink = PngWriter(self._stream_path, self.frames, comment=label)
        else:
            self._spill = reserve_spill(self.path, self.frames)
            if self._spill is not None:
                self.note_spill(self._spill.path)
            else:
                self.warnings.append("there is no room for a copy of the frames: if the encoder fails, they are lost")
            try:
                self._sink = self._spawn()
            except _FAILURES as error:
                self._give_up(error)
        self._moved_at = time.monotonic()

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
            except _FAILURES as error:
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
            except _FAILURES as error:
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
                self._facts = self._read_back()
            except _FAILURES as error:
                if self._spill is None:
                    raise
                self._give_up(error)
        if self._failure is not None:
            self._rescue(self._failure)

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

    @property
    def _stream_path(self) -> str:
        """The file or folder that the sink writes. ffmpeg gets one file: of pictures, a stream that is cut later."""
        if self.config.is_sequence and self.config.format.writer is Writer.FFMPEG:
            return os.path.join(self.part_path, ".stream")
        return self.part_path

    def _spawn(self) -> EncoderProcess:
        if self.config.is_sequence:
            with open(self._stream_path, "wb"):
                pass
        encoder = spawn_encoder(self.config, self.frames.num_frames, self._stream_path)
        encoder.check_stop = self.check_stop
        return encoder

    def _read_back(self) -> VideoFacts:
        if self.config.format.writer is not Writer.FFMPEG:
            return self._own_facts()
        facts = verify_video(self._stream_path, self.config, self.frames.num_frames)
        if self.config.is_sequence:
            self._cut(facts.packet_bytes)
        return facts

    def _own_facts(self) -> VideoFacts:
        from fractions import Fraction

        frames = self.frames
        return VideoFacts(
            codec=self.config.codec,
            pixel_format="rgb24",
            color=("pc",),
            width=frames.width,
            height=frames.height,
            num_frames=frames.num_frames,
            duration=frames.num_frames / self.config.frame_rate,
            tick=Fraction(0),
        )

    def _cut(self, sizes: tuple[int, ...]) -> None:
        """Cut the one stream of pictures into files."""
        suffix = self.config.format.suffix
        try:
            with open(self._stream_path, "rb") as stream:
                for index, size in enumerate(sizes):
                    with open(os.path.join(self.part_path, picture_name(index, suffix)), "wb") as picture:
                        picture.write(stream.read(size))
                if stream.read(1):
                    raise EncodingFailed("the pictures do not add up to the stream")
            os.unlink(self._stream_path)
        except OSError as error:
            raise disk_error(error, self.part_path) from error

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

    def _rescue(self, failure: WanCompatError) -> None:
        spill = self._spill
        if spill is None or not spill.complete:
            raise failure
        for action, encode in self._other_ways(failure):
            try:
                self._facts = encode(spill)
                self._recovered(failure, action, "succeeded")
                self._failure = None
                return
            except _FAILURES as again:
                self._recovered(failure, action, f"failed: {again.message}")
                if "kept" in again.details:
                    raise
                failure = again
        kept = self._keep_frames(spill)
        self._recovered(failure, "kept the frames", kept)
        finish = f"wan-compat encode {shlex.quote(kept)} --output {shlex.quote(self.path)}"
        error = type(failure)(
            f"{failure.message}; all {self.frames.num_frames} frames are kept in {kept!r}",
            fixes=(f"finish the video: {finish}", *failure.fixes),
            details=failure.details | {"kept": kept, "finish": finish, "recovery": self.recovery},
        )
        raise error from failure

    def _other_ways(self, failure: WanCompatError) -> Iterator[tuple[str, Callable[[Spill], VideoFacts]]]:
        """Yield what can be tried with the copy of the frames: in words, and the act."""
        if isinstance(failure, DiskExceeded) and not self.config.is_sequence:
            yield (
                "encoded on another disk from the kept frames, and moved when their room was free",
                self._encode_elsewhere,
            )
        if not isinstance(failure, _HOPELESS):
            yield "encoded again from the kept frames", self._encode_again
            other = other_codec(self.config, self.plan_codec) if self.plan_codec is not None else None
            if other is not None:
                named = CODECS[other.codec].label
                yield f"encoded as {named}, which not every player has", functools.partial(self._encode_as, other)
        if not isinstance(failure, DiskExceeded) and self._needs_no_encoder:
            yield "written without an encoder, as PNG pictures in the video file", self._write_without_encoder

    @property
    def _needs_no_encoder(self) -> bool:
        """Whether all that was asked for can be had without one: no codec by name, no sound, nothing cut."""
        params = self.config.additional_params
        wanted = {"audio", "crop", "fragmented", "still"} & params.keys()
        return self.plan_codec is not None and self.config.format.name in CONTAINERS and not wanted

    def _write_without_encoder(self, spill: Spill) -> VideoFacts:
        config = self.config
        with contextlib.closing(spill.frames()) as frames:
            write_png_video(
                self._stream_path,
                self._stoppable(frames),
                self.frames,
                config.frame_rate,
                config.format.name,
                str(config.additional_params.get("comment", "")),
            )
        again = f"wan-compat encode {shlex.quote(self.path)} --output NEW{config.format.suffix}"
        self.warnings.append(
            f"no encoder worked: the {config.format.label} holds PNG pictures, which lose nothing, are large, and are "
            f"shown by mpv and VLC, not by browsers; once ffmpeg works: {again}"
        )
        return dataclasses.replace(self._own_facts(), codec="png")

    def _encode_as(self, config: EncodingConfig, spill: Spill) -> VideoFacts:
        before, self.config = self.config, config
        try:
            facts = self._encode_again(spill)
        except BaseException:
            self.config = before
            raise
        failed, made = CODECS[before.codec].label, CODECS[config.codec].label
        self.warnings.append(f"the video is {made}, because the encoder of {failed} failed")
        return facts

    def _encode_elsewhere(self, spill: Spill) -> VideoFacts:
        """Encode where there is room. The copy of the frames may be what fills the output's disk: it goes when there is
        a video that was read back."""
        with room_elsewhere(self.path) as place:
            if place is None:
                raise DiskExceeded("no other disk has room", hint="free some space")
            encoder = spawn_encoder(self.config, self.frames.num_frames, place)
            encoder.check_stop = self.check_stop
            self._give_copy(encoder, spill)
            facts = verify_video(place, self.config, self.frames.num_frames)
            make_room(place, self._stream_path, spill)
        return facts

    def _encode_again(self, spill: Spill) -> VideoFacts:
        self._give_copy(self._spawn(), spill)
        return self._read_back()

    def _give_copy(self, encoder: EncoderProcess, spill: Spill) -> None:
        # Closed here: an error's traceback would keep the file open for as long as somebody keeps the error.
        with encoder, contextlib.closing(spill.frames()) as frames:
            feed(encoder, self._stoppable(frames), RETRY_TIMEOUT_S)
            encoder.finish(RETRY_TIMEOUT_S)

    def _stoppable(self, frames: Iterable[memoryview]) -> Iterator[memoryview]:
        for frame in frames:
            self.check_stop()
            yield frame

    def _keep_frames(self, spill: Spill) -> str:
        """Turn the copy into a folder of pictures, or let it stay what it is; return where the frames are."""
        folder = f"{self.path}.frames"
        number = 2
        while os.path.lexists(folder):
            folder, number = f"{self.path}.frames-{number}", number + 1
        document = {"frames": {"fps": self.config.fps, "wanted": os.path.basename(self.path)}}
        try:
            size = self.frames.frame_bytes * self.frames.num_frames
            with prepare_folder(folder, min_free_bytes=size) as target:
                writer = PngWriter(target.part_path, self.frames)
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
        with self._only_a_warning("the sidecar of the frames"):
            sidecar.write(sidecar.path_of(kept), document, None)
        return kept

    def _recovered(self, failure: WanCompatError, action: str, outcome: str) -> None:
        self.recovery.append({"error": failure.message, "action": action, "outcome": outcome})

    @contextlib.contextmanager
    def _only_a_warning(self, what: str) -> Any:
        try:
            yield
        except (WanCompatError, OSError) as error:
            self.warnings.append(f"{what} could not be written: {error}")


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


def deliver(delivery: Delivery, frames: Iterable[memoryview], *, timeout_s: float, label: str = "") -> None:
    """Start, feed and finish a delivery; blocks.

    Args:
        frames: `num_frames` buffers of (height, width, 3) uint8 RGB, contiguous.
        timeout_s: For all of it.

    Raises:
        DeadlineExceeded: The time is over.
        WanCompatError: As `Delivery.finish`.
    """
    deadline_s = time.monotonic() + timeout_s
    delivery.start(label)
    given = 0
    for frame in frames:
        view = memoryview(frame).cast("B")
        given += len(view)
        if given > delivery.frames.frame_bytes * delivery.frames.num_frames:
            raise ValueError(f"more than {delivery.frames.num_frames} frames")
        while view:
            written = delivery.write_some(view)
            view = view[written:]
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"the encoder took no frame within {timeout_s:g} s")
            if view and not written and delivery.fileno() >= 0:
                poller = select.poll()
                poller.register(delivery.fileno(), select.POLLOUT)
                poller.poll(min(left_s, 1.0) * 1000 + 1)
    if given < delivery.frames.frame_bytes * delivery.frames.num_frames:
        raise EncodingFailed(
            f"the encoder was given {given // delivery.frames.frame_bytes} of {delivery.frames.num_frames} frames"
        )
    delivery.finish(max(0.0, deadline_s - time.monotonic()))


def encode_file(
    frames: Iterable[memoryview],
    spec: FrameSpec,
    fps: float,
    output: str | os.PathLike[str],
    *,
    options: VideoOptions | None = None,
    overwrite: bool = False,
    timeout_s: float = 600.0,
    document: dict[str, Any] | None = None,
    label: str = "",
) -> OutputReport:
    """Encode frames to a file: prepare, feed, finish, verify, commit. Blocks."""
    with prepare_delivery(output, spec, fps, options, overwrite=overwrite) as delivery:
        deliver(delivery, frames, timeout_s=timeout_s, label=label)
        report = delivery.commit()
        if document is not None:
            delivery.write_sidecar(document, report)
        return report
