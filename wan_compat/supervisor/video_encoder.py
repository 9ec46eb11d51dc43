"""VideoEncoder and FormatConverter: frames or files of ours into any format, in one call each.

Both go the way of a job's frames (`delivery.py`): confined ffmpeg, read back, whole or absent, and a copy of the frames
for as long as the encoder may fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from wan_compat.policies.encoding import EncodingConfig, plan_encoding
from wan_compat.policies.encoding.formats import FORMATS, format_for
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, UnusableFrames, WanCompatError
from wan_compat.protocol.results import OutputReport, ProcessedFrames
from wan_compat.protocol.values import FrameSpec
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import sidecar
from wan_compat.supervisor.delivery import prepare_delivery
from wan_compat.supervisor.encode_file import deliver, encode_file
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.frame_source import FrameSource, open_source

TIMEOUT_S = 4 * 3600.0


@dataclasses.dataclass(frozen=True)
class EncodingResult:
    """`config` is None where there was no plan; `fallback` says where the frames are when there is no video."""

    success: bool
    output_path: str | None
    config: EncodingConfig | None
    size_bytes: int
    errors: list[str]
    warnings: list[str] = dataclasses.field(default_factory=list)
    fallback: FallbackResult | None = None
    report: OutputReport | None = None


@dataclasses.dataclass(frozen=True)
class FallbackResult:
    """Frames as files. `directory` holds `files`; `reason` says why they are not a video."""

    success: bool
    directory: str | None
    files: list[str]
    reason: str


@dataclasses.dataclass(frozen=True)
class DependencyStatus:
    """Whether ffmpeg is there, and what it was built with. An encoder for hardware says nothing about the hardware."""

    available: bool
    path: str | None
    version: str | None
    encoders: list[str]
    hint: str | None


class VideoEncoder:
    """Encodes frames in memory.

    Args:
        options: Quality, codec, sound and the like; the format comes with each call.
        overwrite: Replace a file of that name.
        timeout_s: For one video.
    """

    def __init__(
        self, options: VideoOptions | None = None, *, overwrite: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.options = options or VideoOptions()
        self.overwrite = overwrite
        self.timeout_s = timeout_s

    def encode_frames_to_video(
        self, frames: ProcessedFrames, output_path: str | os.PathLike[str], format: str = "mp4"
    ) -> EncodingResult:
        """Write frames as a video; what an encoder cannot do ends in files of the frames, told in the result.

        Args:
            frames: (num_frames, height, width, 3) uint8 RGB with their rate.
            output_path: Its suffix must be that of the format; one without gets it, pictures become a folder.
            format: Key of FORMATS.

        Raises:
            InvalidRequest: What was asked for cannot be; nothing was written.
            OutputExists, OutputNotWritable: There is no place for it.
        """
        spec = spec_of(frames)
        path = self._path(output_path, format)
        config: EncodingConfig | None = None
        try:
            with prepare_delivery(path, spec, frames.fps, self._wish(format), overwrite=self.overwrite) as delivery:
                config = delivery.config
                deliver(delivery, _views(frames), timeout_s=self.timeout_s)
                report = delivery.commit()
                return EncodingResult(
                    True, report.path, config, report.bytes, [], list(delivery.warnings), report=report
                )
        except (InvalidRequest, UnusableFrames):
            raise
        except WanCompatError as error:
            fallback = self._fallback(frames, path, error)
            return EncodingResult(False, None, config, 0, [error.message, *error.fixes], fallback=fallback)

    def configure_encoding_params(self, frames: ProcessedFrames, target_format: str) -> EncodingConfig:
        """Return how frames would be encoded. Raises InvalidRequest where they cannot be."""
        spec, form = spec_of(frames), format_for("", target_format) if _is_pictures(target_format) else None
        suffix = "" if form else format_for(f".{target_format.removeprefix('.')}").suffix
        return plan_encoding(
            spec.width, spec.height, frames.fps, suffix, self._wish(target_format), num_frames=spec.num_frames
        )

    def check_encoding_dependencies(self) -> DependencyStatus:
        """Say whether ffmpeg is there. PNG and NumPy files need none."""
        try:
            ffmpeg = find_ffmpeg()
        except EnvironmentLacks as error:
            return DependencyStatus(False, None, None, [], error.hint)
        return DependencyStatus(True, ffmpeg.path, ffmpeg.version, sorted(ffmpeg.encoders), None)

    def provide_fallback_output(
        self, frames: ProcessedFrames, output_path: str | os.PathLike[str], reason: str = "asked for"
    ) -> FallbackResult:
        """Write each frame as a PNG, in the folder OUTPUT_PATH, or OUTPUT_PATH.frames where that names a file."""
        path = os.fspath(output_path)
        folder = f"{path}.frames" if os.path.splitext(path)[1] else path
        document = {"frames": {"fps": frames.fps, "wanted": os.path.basename(path)}}
        try:
            wish = VideoOptions(format="png")
            report = encode_file(_views(frames), spec_of(frames), frames.fps, folder, options=wish, document=document)
        except WanCompatError as error:
            return FallbackResult(False, None, [], f"{reason}; and {error.message}")
        return FallbackResult(True, report.path, sorted(os.listdir(report.path)), reason)

    def _fallback(self, frames: ProcessedFrames, path: str, error: WanCompatError) -> FallbackResult:
        kept = error.details.get("kept")
        if kept is None:
            return self.provide_fallback_output(frames, path, error.message)
        files = sorted(os.listdir(kept)) if os.path.isdir(kept) else [os.path.basename(kept)]
        return FallbackResult(True, kept if os.path.isdir(kept) else os.path.dirname(kept), files, error.message)

    def _wish(self, format: str) -> VideoOptions:
        return self.options.model_copy(update={"format": format.removeprefix(".")})

    def _path(self, output_path: str | os.PathLike[str], format: str) -> str:
        path = os.fspath(output_path)
        form = FORMATS.get(format)
        if form is not None and not form.pictures and not os.path.splitext(path)[1]:
            return path + form.suffix
        return path


class FormatConverter:
    """Turns any of our outputs into another one, and a folder of kept frames into the video that it should have been.

    Args:
        options: How the result is written; None for the defaults of its format.
        overwrite: Replace a file of that name.
        timeout_s: For one conversion.
    """

    def __init__(
        self, options: VideoOptions | None = None, *, overwrite: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.options = options or VideoOptions()
        self.overwrite = overwrite
        self.timeout_s = timeout_s

    def convert(
        self, source: str | os.PathLike[str], output: str | os.PathLike[str], *, fps: float | None = None
    ) -> EncodingResult:
        """Decode `source` and encode it as `output`. Memory does not grow with the number of frames.

        Args:
            source: A video, animation, folder of pictures or array, as we write them.
            fps: Of the result; None keeps the source's. Frames are neither repeated nor dropped for another rate.

        Raises:
            InvalidRequest: The source is none, says no rate where none is given, or cannot become that.
            WanCompatError: As for a job's output.
        """
        found, rate = self._opened(source, fps)
        said = {} if found.stale or found.document is None else found.document
        document: dict[str, Any] = {name: said[name] for name in ("request", "model", "mode", "result") if name in said}
        document["converted_from"] = os.path.basename(found.path)
        with prepare_delivery(output, found.frames, rate, self.options, overwrite=self.overwrite) as delivery:
            with contextlib.closing(found.read()) as frames:
                deliver(delivery, frames, timeout_s=self.timeout_s)
            report = delivery.commit()
            if said:
                delivery.write_sidecar(document, report)
            else:
                sidecar.forget(report.path)
            return EncodingResult(
                True, report.path, delivery.config, report.bytes, [], list(delivery.warnings), report=report
            )

    def foresee(
        self, source: str | os.PathLike[str], output: str | os.PathLike[str], *, fps: float | None = None
    ) -> tuple[str, FrameSpec, EncodingConfig]:
        """Return the path, the frames and the encoding that `convert` would come to, and leave nothing.

        Raises:
            WanCompatError: As `convert`, as far as that shows before a frame is decoded.
        """
        found, rate = self._opened(source, fps)
        with prepare_delivery(output, found.frames, rate, self.options, overwrite=self.overwrite) as delivery:
            return delivery.path, found.frames, delivery.config

    def _opened(self, source: str | os.PathLike[str], fps: float | None) -> tuple[FrameSource, float]:
        found = open_source(source)
        rate = fps or found.fps
        if rate is None:
            raise InvalidRequest(f"{found.path!r} does not say its frames per second", hint="give --fps")
        return found, rate


def spec_of(frames: ProcessedFrames) -> FrameSpec:
    """Return what frames look like. Raises InvalidRequest where they are not as ProcessedFrames promises."""
    array = frames.frames
    if array.ndim != 4 or array.shape[3] != 3 or str(array.dtype) != "uint8" or 0 in array.shape:
        raise InvalidRequest(
            f"frames of shape {array.shape} and type {array.dtype} are not (num_frames, height, width, 3) uint8",
            hint="let FrameTensorHandler make them",
        )
    try:
        return FrameSpec(num_frames=int(array.shape[0]), height=int(array.shape[1]), width=int(array.shape[2]))
    except ValueError as error:
        raise InvalidRequest(f"{array.shape[0]} frames of {array.shape[2]}x{array.shape[1]} are too many") from error


def _is_pictures(name: str) -> bool:
    form = FORMATS.get(name)
    return form is not None and form.pictures


def _views(frames: ProcessedFrames) -> Iterator[memoryview]:
    import numpy as np

    return (np.ascontiguousarray(frame).data for frame in frames.frames)
