"""Pictures and videos that a job was given: from sealed descriptors to pictures of the job's size.

The files are a user's, and may be anybody's: they are parsed here, inside the sandbox, by Pillow and by FFmpeg's
libraries (PyAV), and never by the supervisor. Every format is named, every size looked at before its pixels are made.

Nothing is distorted in silence: diffusers would stretch a picture to the asked size (`VaeImageProcessor.resize`), here
it keeps its aspect and is cut in the middle; a reference is fitted on white, as WanVACEPipeline does it. What was done
is told in a note. Frames are taken in order, one for one, and trimmed; a video with too few is refused. Where a video
goes before what is made (`MediaSpec.context`), its last frames are taken.

    image, last_image            one picture, RGB
    reference                    pictures, RGB, on white
    mask                         frames, greyscale; a still picture serves for all frames
    video, *_video               frames, RGB; a still picture is a video of one frame

Transparency is laid on white, in a mask on black; 16 bits become 8; EXIF's and a video's rotation is applied.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from wan_compat.protocol.errors import InvalidRequest, WanCompatError, WorkerExtraMissing, clean_text
from wan_compat.protocol.media import MAX_MEDIA_PIXELS, MAX_MEDIA_SIDE, PICTURE_ROLES, MediaRole, MediaSpec
from wan_compat.protocol.values import GenerationParams
from wan_compat.workers.cancellation import Cancellation

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
# FFmpeg's names. Playlists (hls, dash, concat) are not among them: they name other files.
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc,ivf,yuv4mpegpipe,nut"
)
VIDEO_TIMEOUT_S = 300.0  # for one file; the supervisor's own deadlines are behind it
_PROBE_BYTES = 8 << 20
_PROBE_MICROSECONDS = 10_000_000
_MAX_NOTE_CHARS, _MAX_NOTES = 200, 14  # of the 16 that a message takes; two are for prompts


@dataclasses.dataclass(frozen=True)
class Media:
    """What a job was given, decoded. `pictures` has one entry for each role, in the order of the files; frames of
    videos follow each other. `notes` say what was done to fit them."""

    pictures: Mapping[MediaRole, tuple[Image.Image, ...]]
    notes: tuple[str, ...]


NO_MEDIA = Media({}, ())


def decode_media(
    descriptors: Sequence[int], params: GenerationParams, frame_step: int, cancellation: Cancellation
) -> Media:
    """Decode all files of a job.

    Args:
        descriptors: One for each of `params.media`; taken over, and closed however this ends.
        frame_step: Frames per latent frame, for a hint that names a length that works.

    Raises:
        InvalidRequest: A file is no picture or video of a known format, broken, too large, or too short.
        WorkerExtraMissing: PyAV is not installed, and there is a video.
        JobCancelled: A stop was requested.
    """
    Image.MAX_IMAGE_PIXELS = None  # its limit only warns; _check_size is ours, and comes before any pixel
    found: dict[MediaRole, tuple[Image.Image, ...]] = {}
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(descriptor, "rb", closefd=True)) for descriptor in descriptors]
        for spec, file in zip(params.media, files, strict=True):
            cancellation.check()
            reader = _Reader(spec, file, params, frame_step, cancellation)
            try:
                pictures = reader.read()
            except (WanCompatError, MemoryError):
                raise
            except Exception as error:
                raise InvalidRequest(
                    f"the {_name(spec.role)} cannot be read: {_words_of(error)}",
                    hint="see whether another program shows it; it may be cut off, or not what its name says",
                ) from error
            found[spec.role] = (*found.get(spec.role, ()), *pictures)
            notes += reader.notes
    return Media(found, tuple(dict.fromkeys(note[:_MAX_NOTE_CHARS] for note in notes))[:_MAX_NOTES])


def _words_of(error: Exception) -> str:
    """Return what a library says about a file, without numbers of its errors and of the descriptor."""
    words = getattr(error, "strerror", None) or re.sub(r" ?<_io\.[^>]*>", "", str(error))
    return clean_text(words or type(error).__name__, 300)


class _Reader:
    """One file of a job."""

    def __init__(
        self, spec: MediaSpec, file: BinaryIO, params: GenerationParams, frame_step: int, cancellation: Cancellation
    ) -> None:
        self._role, self._file = spec.role, file
        self._size = (spec.square, spec.square) if spec.square else (params.frames.width, params.frames.height)
        self._frames, self._step = params.frames.num_frames, frame_step
        self._context = spec.context
        self._cancellation = cancellation
        self.notes: list[str] = []
        if os.fstat(file.fileno()).st_size != spec.bytes:
            raise InvalidRequest(f"the {_name(spec.role)} is not as long as was said")

    def read(self) -> tuple[Image.Image, ...]:
        picture = _open_picture(self._file)
        if self._role in PICTURE_ROLES:
            if picture is None:
                raise InvalidRequest(
                    f"the {_name(self._role)} is no picture of a known format",
                    hint=f"use one of {', '.join(PICTURE_FORMATS)}",
                )
            return (self._fit(_upright(picture, self._role)),)
        if picture is None:
            return self._of_video(_video_frames(self._file, self._role))
        stills = getattr(picture, "n_frames", 1)
        if stills > 1:
            return self._of_video(_upright(still, self._role) for still in ImageSequence.Iterator(picture))
        fitted = self._fit(_upright(picture, self._role))
        return (fitted,) * self._frames if self._role == "mask" else self._enough((fitted,))

    def _of_video(self, frames: Iterator[Image.Image]) -> tuple[Image.Image, ...]:
        deadline = time.monotonic() + VIDEO_TIMEOUT_S
        # Of what goes before the job, only the end is held: the video may be of any length.
        most = self._context[1] if self._context is not None else None
        taken: collections.deque[Image.Image] = collections.deque(maxlen=most)
        for frame in frames:
            self._cancellation.check()
            if time.monotonic() > deadline:
                raise InvalidRequest(f"the {_name(self._role)} took longer than {VIDEO_TIMEOUT_S:.0f} s to read")
            taken.append(self._fit(frame))
            if most is None and len(taken) == self._frames:
                break
        return self._enough(tuple(taken))

    def _enough(self, frames: tuple[Image.Image, ...]) -> tuple[Image.Image, ...]:
        if self._context is not None:
            if len(frames) < self._context[0]:
                raise InvalidRequest(
                    f"the {_name(self._role)} has {len(frames)} frames; "
                    f"to go on from it, its last {self._context[0]} are needed",
                    hint="use a longer video",
                )
            return frames
        if len(frames) < self._frames:
            usable = (len(frames) - 1) // self._step * self._step + 1
            raise InvalidRequest(
                f"the {_name(self._role)} has {len(frames)} frames, and {self._frames} were asked for",
                hint=f"use --num-frames {usable}, or a longer video" if frames else "use another file",
            )
        return frames

    def _fit(self, picture: Image.Image) -> Image.Image:
        """Return the picture in the job's size, its aspect kept."""
        if picture.size == self._size:
            return picture
        (width, height), (wanted_width, wanted_height) = picture.size, self._size
        name = f"{_name(self._role)}: {width}x{height}"
        if self._role == "reference":
            self.notes.append(f"{name} was fitted on white into {wanted_width}x{wanted_height}")
            scale = min(wanted_width / width, wanted_height / height)
            inner = (max(1, round(width * scale)), max(1, round(height * scale)))
            canvas = Image.new("RGB", self._size, "white")
            left, top = ((outer - side) // 2 for outer, side in zip(self._size, inner, strict=True))
            canvas.paste(picture.resize(inner, Image.Resampling.LANCZOS), (left, top))
            return canvas
        scale = max(wanted_width / width, wanted_height / height)
        lost = 1 - (wanted_width * wanted_height) / (width * scale * height * scale)
        cut = f", {lost:.0%} cut off at the edges" if lost >= 0.005 else ""
        self.notes.append(f"{name} was resized to {wanted_width}x{wanted_height}{cut}")
        # A mask is a choice for each pixel: what lies between its two values is decided by diffusers' threshold.
        method = Image.Resampling.BOX if self._role == "mask" else Image.Resampling.LANCZOS
        return ImageOps.fit(picture, self._size, method=method)


def _open_picture(file: BinaryIO) -> Image.Image | None:
    """Return the picture in a file, its pixels not yet made; None where it has no format of a picture."""
    file.seek(0)
    try:
        picture = Image.open(file, formats=PICTURE_FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        return None
    _check_size(*picture.size)
    return picture


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= MAX_MEDIA_SIDE and 1 <= height <= MAX_MEDIA_SIDE) or width * height > MAX_MEDIA_PIXELS:
        raise InvalidRequest(
            f"a picture of {width}x{height} is too large",
            hint=f"at most {MAX_MEDIA_SIDE} pixels a side, {MAX_MEDIA_PIXELS:,} in all",
        )


def _upright(picture: Image.Image, role: MediaRole) -> Image.Image:
    """Return a picture as 8-bit RGB, of a mask as greyscale: upright, nothing transparent."""
    picture = ImageOps.exif_transpose(picture)
    target = "L" if role == "mask" else "RGB"
    if picture.mode == "F":
        raise InvalidRequest(f"the {_name(role)} has floating-point pixels", hint="save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        below = Image.new("RGBA", picture.size, "black" if role == "mask" else "white")
        picture = Image.alpha_composite(below, picture.convert("RGBA"))
    return picture.convert(target)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Halve 16 bits. Pillow's own conversion would cut everything above 255 off, to white."""
    import numpy as np

    values = np.asarray(picture).astype(np.int64)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise InvalidRequest(f"a picture with values from {lowest} to {highest} has no known range")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _video_frames(file: BinaryIO, role: MediaRole) -> Iterator[Image.Image]:
    """Yield the frames of the first video stream, upright, with square pixels."""
    try:
        import av
    except ImportError as error:
        raise WorkerExtraMissing(f"videos cannot be read: {error}", hint="pip install 'wan-compat[worker]'") from error
    limits = {"max_pixels": str(MAX_MEDIA_PIXELS)}
    options = {
        "format_whitelist": VIDEO_FORMATS,
        "protocol_whitelist": "none",
        "probesize": str(_PROBE_BYTES),
        "analyzeduration": str(_PROBE_MICROSECONDS),
    }
    av.logging.set_level(av.logging.PANIC)
    with av.open(file, mode="r", container_options=options, options=limits, metadata_errors="ignore") as container:
        if not container.streams.video:
            raise InvalidRequest(f"the {_name(role)} has no video stream", hint="use a picture or a video")
        stream = container.streams.video[0]
        _check_size(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = limits
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            _check_size(frame.width, frame.height)
            yield _turned(frame.to_image(), frame, stream).convert("L" if role == "mask" else "RGB")


def _turned(picture: Image.Image, frame: Any, stream: Any) -> Image.Image:
    aspect = float(stream.sample_aspect_ratio or 1)
    if aspect != 1 and 1 / 16 <= aspect <= 16:
        width = max(1, round(picture.width * aspect))
        _check_size(width, picture.height)
        picture = picture.resize((width, picture.height), Image.Resampling.LANCZOS)
    turn = round(frame.rotation / 90) % 4
    return picture.rotate(90 * turn, expand=True) if turn else picture


def _name(role: MediaRole) -> str:
    return role.replace("_", " ")
