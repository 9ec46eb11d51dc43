"""How each pipeline goes about a generation, as far as memory depends on it.

Wan's own denoise a whole clip and decode it. Others take it in segments or chunks, keep what they decoded, encode given
videos, attend to what went before. Read from diffusers 0.42.1: pipelines/*/pipeline_*.py, modular_pipelines/*, and
what workers call them with (workers/families.py); frames of pixels are float32 there, (3, height, width).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from wan_compat.policies.planning.denoiser import Forward
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.protocol.media import MediaRole

FLOAT32 = 4
COLOURS = 3

# As in workers/families.py: frames of a segment of Animate and Animate-2, of a clip of diffusion forcing.
_SEGMENT, _SEGMENT_2, _CLIP = 77, 81, 97
# Helios: latent frames of a chunk, and those that it looks back at, by how much each is shrunk (history_sizes).
_CHUNK, _CHUNK_FRAMES = 9, 33
_HISTORY = ((1, 2), (2, 2), (4, 16))  # one in front of them is the first frame of all
_MASK_BLOCK = 128  # of flexible attention: sequences are filled up to it


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made, as far as memory depends on it.

    media: Roles of what is given, or what the task needs.
    context: Frames of a given video that go before those that are made.
    references: How many pictures are references.
    steps: Denoising steps; they cost time only.
    at_once: Videos that are denoised together; prompts and pictures are encoded once, and videos decoded one by one.
    """

    height: int
    width: int
    num_frames: int
    guidance: bool = True
    text_tokens: int = 512
    media: frozenset[MediaRole] = frozenset()
    context: int = 0
    references: int = 0
    steps: int = 50
    at_once: int = 1

    @property
    def plane_bytes(self) -> int:
        """One channel of a frame."""
        return self.height * self.width * FLOAT32

    @property
    def frame_bytes(self) -> int:
        return COLOURS * self.plane_bytes


@dataclasses.dataclass(frozen=True)
class Course:
    """What one pipeline does for one job.

    Args:
        window: Frames that are denoised at a time.
        piece: Frames that are decoded at a time.
        encoded: Frames that the VAE encodes at a time; 0 where nothing is given.
        beside: Bytes of pixels that are live while it encodes, besides `held` and what is being encoded.
        held: Bytes of pixels from then to the end.
        before: Bytes of pixels of the pieces before the last one.
        by_turns: Whether pieces are denoised and decoded in turn, so that what was decoded is there while the next one
            is denoised.
        joined: Bytes of pixels when pieces are put together and made pictures, theirs included.
        remembered: Latent frames, besides those of the window.
        extra: Latent frames in front of the window, of references.
        modulated: What has a timestep of its own: the sequence, or each frame, repeated for its tokens.
        sequences: In one forward pass; AnyFlow has both prompts in one.
    """

    window: int
    piece: int
    encoded: int = 0
    beside: int = 0
    held: int = 0
    before: int = 0
    joined: int = 0
    by_turns: bool = False
    remembered: int = 0
    extra: int = 0
    modulated: bool = False
    sequences: int = 1


def course_of(shape: ModelShape, job: Job, itemsize: int = FLOAT32) -> Course:
    """Return how the pipeline of a model goes about a job; `itemsize` is of the VAE's numbers."""
    sizes = _Sizes(shape, job, itemsize)
    make = _COURSES.get(shape.pipeline_class)
    if make is not None:
        return make(sizes)
    if shape.pipeline_class.startswith("Helios"):
        return _helios(sizes)
    return _anyflow(sizes) if shape.pipeline_class.startswith("AnyFlow") else _whole(sizes)


def forwards_of(shape: ModelShape, job: Job, course: Course) -> tuple[Forward, ...]:
    """Return the kinds of forward passes of a job, any of which may take most."""
    denoiser = shape.denoiser
    frames, height, width = shape.vae.latent(course.window, job.height, job.width)
    latent = (frames + course.extra, height, width)
    tokens = denoiser.tokens(latent)
    if denoiser.chunks:
        return tuple(_chunk_by_chunk(shape, latent))
    if shape.pipeline_class.startswith("WanAnimate2"):
        return (_packed(shape, latent, tokens),)
    if shape.pipeline_class.startswith("Helios"):
        # Looked back at: two frames as they are, two in quarters, sixteen in sixteenths (patch_short, _mid, _long).
        rows, columns = height // denoiser.patch_size[1], width // denoiser.patch_size[2]
        tokens += sum(count // side * -(-rows // side) * -(-columns // side) for side, count in _HISTORY)
    return (Forward(latent, tokens, modulated=course.modulated),)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    shape: ModelShape
    job: Job
    itemsize: int

    @property
    def frames(self) -> int:
        return self.job.num_frames

    @property
    def given(self) -> int:
        """Bytes of a frame as it is given: float32, whatever the VAE's type."""
        return self.job.frame_bytes

    @property
    def coded(self) -> int:
        """Bytes of a frame in the VAE's type."""
        return self.job.frame_bytes * self.itemsize // FLOAT32

    @property
    def cast(self) -> int:
        """Bytes of a given frame's copy for the VAE, where its type is another."""
        return 0 if self.itemsize == FLOAT32 else self.coded


# ---- Wan's own -----------------------------------------------------------------------------------------------------


def _whole(sizes: _Sizes, encoded: int = 0, beside: int = 0, held: int = 0, extra: int = 0) -> Course:
    joined = 3 * sizes.frames * sizes.coded  # decoded; in [0, 1]; put into a batch
    return Course(sizes.frames, sizes.frames, encoded, beside, held, joined=joined, extra=extra)


def _picture(sizes: _Sizes) -> Course:
    """The picture with empty frames behind it; a 5B's takes the place of the first latent frame."""
    count = 1 if sizes.shape.denoiser.timestep_per_token else sizes.frames
    return _whole(sizes, encoded=count, beside=(count - 1) * sizes.given, held=sizes.given)


def _picture_of_blocks(sizes: _Sizes) -> Course:
    return _whole(sizes, encoded=sizes.frames, beside=sizes.frames * (sizes.given + sizes.cast))


def _edited(sizes: _Sizes) -> Course:
    return _whole(sizes, encoded=sizes.frames, held=sizes.frames * sizes.given)


def _controlled(sizes: _Sizes) -> Course:
    """Divided by a mask into two videos; without one, a mask as large as the video is made, and given colours."""
    job, video = sizes.job, sizes.frames * sizes.given
    beside = 2 * video + sizes.frames * job.plane_bytes if "mask" in job.media else 4 * video
    return _whole(sizes, encoded=sizes.frames, beside=beside, held=video, extra=job.references)


def _controlled_blocks(sizes: _Sizes) -> Course:
    job, video = sizes.job, sizes.frames * sizes.given
    mask = sizes.frames * job.plane_bytes if "mask" in job.media else video
    return _whole(sizes, encoded=sizes.frames, beside=3 * video + mask, extra=job.references)


# ---- relatives -----------------------------------------------------------------------------------------------------


def _forcing(sizes: _Sizes) -> Course:
    job = sizes.job
    made = dataclasses.replace(_whole(sizes), window=min(_CLIP, sizes.frames), modulated=True)
    if "video" in job.media:
        return dataclasses.replace(
            made,
            encoded=job.context,
            beside=job.context * sizes.cast,
            held=job.context * sizes.given,
            # The given video in front of what was made, in its type.
            joined=sizes.frames * sizes.coded + 3 * (job.context + sizes.frames) * sizes.given,
        )
    return dataclasses.replace(made, encoded=1, held=sizes.given) if "image" in job.media else made


def _anyflow(sizes: _Sizes) -> Course:
    job = sizes.job
    made = dataclasses.replace(_whole(sizes), modulated=True, sequences=2 if job.guidance else 1)
    count = job.context if "video" in job.media else 1 if "image" in job.media else 0
    return dataclasses.replace(made, encoded=count, beside=count * sizes.given)


def _helios(sizes: _Sizes) -> Course:
    """Chunk by chunk. Blocks denoise all, then decode all; the ordinary pipelines take turns.

    These call back with `locals()`, which keeps what its names meant at the last step: the video up to the chunk
    before, and that chunk.
    """
    job, modular = sizes.job, sizes.shape.is_modular
    count, chunk = -(-sizes.frames // _CHUNK_FRAMES), _CHUNK_FRAMES * sizes.coded
    before, joined = count - 1, 3 * count + (count > 1)
    if not modular:
        before += (count > 2) + max(0, count - 2) + (count > 3)
        joined += (count - 1) + (count > 2)
    made = Course(
        window=_CHUNK_FRAMES,
        piece=_CHUNK_FRAMES,
        before=before * chunk,
        joined=joined * chunk,
        by_turns=not modular,
        remembered=2 * (sum(frames for _, frames in _HISTORY) + count * _CHUNK),
        modulated=True,
    )
    if "video" in job.media:
        return dataclasses.replace(made, encoded=job.context, held=job.context * sizes.given)
    if "image" in job.media:
        return dataclasses.replace(made, encoded=_CHUNK_FRAMES, beside=chunk, held=sizes.given)
    return made


def _animate(sizes: _Sizes) -> Course:
    """Segments, of which the next begins with the last frame of the one before; media are filled up to whole ones."""
    made, job = _segmented(sizes, _SEGMENT), sizes.job
    filled = _filled(sizes, _SEGMENT)
    faces = filled * COLOURS * sizes.shape.denoiser.face_size**2 * FLOAT32
    held = filled * sizes.given + faces
    if "background_video" in job.media:
        return dataclasses.replace(
            made, beside=made.piece * sizes.coded, held=held + filled * (sizes.given + job.plane_bytes)
        )
    return dataclasses.replace(made, beside=2 * made.piece * sizes.coded, held=held)


def _animate2(sizes: _Sizes) -> Course:
    made = _segmented(sizes, _SEGMENT_2)
    beside = made.piece * (sizes.given + sizes.cast)
    return dataclasses.replace(made, beside=beside, held=_filled(sizes, _SEGMENT_2) * sizes.given)


def _segmented(sizes: _Sizes, length: int) -> Course:
    segment = min(length, sizes.frames)
    segments = -(-(sizes.frames - 1) // max(1, segment - 1))
    return Course(
        window=segment,
        piece=segment,
        encoded=segment,
        before=(segments - 1) * segment * sizes.coded,
        # As they were decoded; put together; and what is wanted of them, twice.
        joined=(segments * segment + _filled(sizes, length) + 2 * sizes.frames) * sizes.coded,
        by_turns=True,
        extra=1,
    )


def _filled(sizes: _Sizes, length: int) -> int:
    steps = max(1, min(length, sizes.frames) - 1)
    return 1 + -(-(sizes.frames - 1) // steps) * steps


_COURSES: Mapping[str, Callable[[_Sizes], Course]] = {
    "WanImageToVideoPipeline": _picture,
    "SkyReelsV2ImageToVideoPipeline": _picture,
    "ChronoEditPipeline": _picture,
    "WanVideoToVideoPipeline": _edited,
    "LucyEditPipeline": _edited,
    "WanVACEPipeline": _controlled,
    "SkyReelsV2DiffusionForcingPipeline": _forcing,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _forcing,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _forcing,
    "WanAnimatePipeline": _animate,
    "WanImage2VideoModularPipeline": _picture_of_blocks,
    "Wan22Image2VideoModularPipeline": _picture_of_blocks,
    "Wan22VaceModularPipeline": _controlled_blocks,
    "WanAnimate2ModularPipeline": _animate2,
    "WanAnimate2DistilledModularPipeline": _animate2,
}


# ---- flexible attention, which a worker computes without a compiler: every score is held ----------------------------


def _chunk_by_chunk(shape: ModelShape, latent: tuple[int, int, int]) -> list[Forward]:
    """AnyFlow FAR: each chunk attends to those before it, the last few as they are and the others shrunk.

    What it attends to lies in a cache (use_kv_cache), filled by one pass over all that was made so far.
    """
    denoiser, (frames, height, width) = shape.denoiser, latent
    full = denoiser.tokens((denoiser.patch_size[0], height, width))
    shrunk = (height // denoiser.shrunk_patch[1]) * (width // denoiser.shrunk_patch[2])
    chunks: list[int] = []
    for chunk in denoiser.chunks:
        if sum(chunks) >= frames:
            break
        chunks.append(chunk)
    at_full = denoiser.full_chunks
    kept = max(chunks) * (at_full * full + (len(chunks) - at_full + 1) * shrunk)
    cached = denoiser.layers * 2 * kept
    found = []
    for index, chunk in enumerate(chunks):
        own, far = chunk * full, max(0, index + 1 - at_full)  # before `far`, chunks are shrunk
        keys = own + sum(chunks[far:index]) * full + sum(chunks[:far]) * shrunk
        found.append(Forward((chunk, height, width), own, True, _blocks(own), keys + _blocks(own) - own, cached))
        if index < len(chunks) - 1:
            far = max(0, index + 2 - at_full)
            upto = chunks[: index + 1]
            own = sum(upto[far:]) * full + sum(upto[:far]) * shrunk
            found.append(Forward((sum(upto), height, width), own, True, _blocks(own), _blocks(own), cached))
    return found


def _packed(shape: ModelShape, latent: tuple[int, int, int], tokens: int) -> Forward:
    """Animate-2: what is made attends to itself and to the reference, in one buffer; the reference's keys are kept."""
    frames = latent[0] - 1
    of_frame = tokens // latent[0]
    queries, reference = _blocks((frames + 1) * of_frame), _blocks(frames * of_frame)
    return Forward(latent, tokens, False, queries, queries + reference, shape.denoiser.layers * 2 * frames * of_frame)


def _blocks(tokens: int) -> int:
    return math.ceil(tokens / _MASK_BLOCK) * _MASK_BLOCK
