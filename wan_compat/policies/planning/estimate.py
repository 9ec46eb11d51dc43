"""Memory in each phase of a generation, for one way to run it.

    text_encode    prompt and pictures become embeddings and latents
    denoise_high   the first expert; the only one where there is one
    denoise_low    the second expert
    decode         latents become frames

What counts is what torch allocates: the weights that are resident, and the most that is live besides. What a process
has before it loads anything stands apart (`overhead`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from wan_compat.policies.planning.arena import Peak, higher
from wan_compat.policies.planning.courses import COLOURS, FLOAT32, Course, Job, course_of, forwards_of
from wan_compat.policies.planning.denoiser import denoise_work
from wan_compat.policies.planning.encoders import text_work
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.policies.planning.vae import decode_work, encode_work, tiles_of
from wan_compat.policies.planning.weights import ITEMSIZE, ComponentWeights, Dtype
from wan_compat.protocol.plan import PlanSpec

Phase = Literal["text_encode", "denoise_high", "denoise_low", "decode"]
IN_FILES = ("transformer", "transformer_2", "text_encoder")
PHASES: tuple[Phase, ...] = ("text_encode", "denoise_high", "denoise_low", "decode")

# A confined worker before it loads anything, as the kernel charges it: libraries' private pages and the interpreter.
WORKER_BYTES = 400_000_000
# What glibc's allocator keeps beside the bytes in use; tensors of this size are mapped and given back at once.
ALLOCATOR_SHARE = 1.05
# A CUDA context with its libraries, and what cuDNN's convolutions and the caching allocator take beside the tensors.
# Not measured here: no GPU was there to measure on.
CUDA_CONTEXT_BYTES = 600_000_000
CUDA_ALLOCATOR_SHARE = 1.10
CUDA_HOST_BYTES = 1_500_000_000

# Of latents in float32 while denoising: the latents, the model's answers, what the solver remembers of past steps, and
# what a worker keeps to decode again; at the end, their denormalised copies too.
_LATENT_COPIES = 7
_LATENT_COPIES_AT_END = 9
# Of what pictures become, in float32: made, masked, joined with the noise at each step (counted on tiny models).
_CONDITION_COPIES = 4
_CONTROL_COPIES = 2
_MASK_PIXELS = 64  # WanVACEPipeline makes a channel of each pixel of a latent's square


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run a model: where, in which precision, with which plan."""

    device: Literal["cpu", "cuda"]
    dtype: Dtype  # of transformers and text encoder
    vae_dtype: Dtype
    plan: PlanSpec
    streaming: bool = True
    threads: int = 1


@dataclasses.dataclass(frozen=True)
class PhaseMemory:
    """Bytes in one phase: on the device that computes and in main memory. On a CPU all of it is main memory."""

    weights: int = 0  # resident where it is computed
    work: int = 0  # allocated besides
    tensors: int = 0  # of that, what is tensors and not a kernel's own
    host_weights: int = 0  # resident in main memory while a GPU computes
    overhead: int = 0  # of the process itself, in main memory
    device_overhead: int = 0
    on_gpu: bool = False
    loading: int = 0  # of weights in main memory at the most, before any phase

    @property
    def counted(self) -> int:
        """The bytes of tensors where it is computed, as `workers/memory_count.py` counts them."""
        return self.weights + self.tensors

    @property
    def is_loading(self) -> bool:
        """Whether main memory holds most while weights are loaded, before the phase itself."""
        return self.loading > self._held

    @property
    def _held(self) -> int:
        return self.host_weights if self.on_gpu else self.weights + math.ceil(self.work * ALLOCATOR_SHARE)

    @property
    def vram_bytes(self) -> int:
        if not self.on_gpu:
            return 0
        return math.ceil(self.weights + self.work * CUDA_ALLOCATOR_SHARE) + self.device_overhead

    @property
    def ram_bytes(self) -> int:
        return max(self._held, self.loading) + self.overhead


def estimate(shape: ModelShape, job: Job, setting: Setting) -> Mapping[Phase, PhaseMemory]:
    """Return the memory of each phase that this model has."""
    loading = _loading(shape, setting)
    shape = shape if setting.plan.layerwise_casting is None else shape.cast
    work = _work(shape, job, setting)
    found = {phase: _resident(shape, setting, phase, work[phase]) for phase in PHASES if phase in work}
    # Loading is nobody's phase: it is over when the first begins.
    found["text_encode"] = dataclasses.replace(found["text_encode"], loading=loading)
    return found


def peak(phases: Mapping[Phase, PhaseMemory]) -> tuple[int, int]:
    """Return the most that any phase takes, of VRAM and of main memory."""
    return max(item.vram_bytes for item in phases.values()), max(item.ram_bytes for item in phases.values())


# ---- what is live besides weights ----------------------------------------------------------------------------------


def _work(shape: ModelShape, job: Job, setting: Setting) -> dict[Phase, Peak]:
    itemsize, gpu = ITEMSIZE[setting.dtype], setting.device == "cuda"
    course = course_of(shape, job, ITEMSIZE[setting.vae_dtype])
    forwards = forwards_of(shape, job, course)
    frames, height, width = shape.vae.latent(course.window, job.height, job.width)
    per_frame = height * width * shape.vae.z_dim * FLOAT32
    copy = job.at_once * (frames + course.extra) * per_frame
    prompts = 2 if job.guidance else 1
    # Twice: a worker keeps what it computed for the next job with the same prompt, repeated for each video.
    embedded = 2 * job.at_once * prompts * job.text_tokens * shape.denoiser.text_dim * itemsize
    embedded += len(shape.experts) * shape.denoiser.rope_bytes
    conditions = job.at_once * _conditions(shape, job, course)
    encoder = text_work(shape.text, job.text_tokens, itemsize) if shape.text is not None else 0
    text = Peak(encoder, encoder) + (embedded + _unfolding(shape, shape.encoders, setting))
    if course.encoded:
        text = higher(text, _picture_work(shape, job, course, setting) + (embedded + conditions + course.held))
    sequences = job.at_once * course.sequences
    forward = higher(
        *(
            denoise_work(shape.denoiser, one, itemsize, text_tokens=job.text_tokens, threads=setting.threads, gpu=gpu)
            for one in forwards
        )
    )
    # From pass to pass: pictures and what they became, latents of what was made before, keys and values of it.
    cached = max(one.cached for one in forwards) * shape.denoiser.dim * itemsize * sequences
    stays = embedded + conditions + course.held + cached
    stays += job.at_once * course.remembered * per_frame
    # The model's own type besides float32, for what it is given.
    denoise = forward * sequences + (stays + _LATENT_COPIES * copy + _unfolding(shape, shape.experts, setting))
    if course.by_turns:
        denoise += course.before
    found: dict[Phase, Peak] = {"text_encode": text, "denoise_high": denoise}
    if len(shape.experts) > 1:
        found["denoise_low"] = denoise
    # Of several, one more: counted on tiny models.
    at_end = _LATENT_COPIES_AT_END + (job.at_once > 1)
    found["decode"] = _decode(shape, job, course, setting) + (stays + at_end * copy)
    return found


def _unfolding(shape: ModelShape, names: tuple[str, ...], setting: Setting) -> int:
    return max((shape.weights[name].unfolding(setting.dtype) for name in names), default=0)


def _conditions(shape: ModelShape, job: Job, course: Course) -> int:
    """What pictures become and stay as: latents beside the noise."""
    if not course.encoded:
        return 0
    frames, height, width = shape.vae.latent(max(course.window, course.encoded), job.height, job.width)
    latent = (frames + course.extra) * height * width
    if shape.denoiser.vace_blocks:
        return _CONTROL_COPIES * latent * (2 * shape.vae.z_dim + _MASK_PIXELS) * FLOAT32
    added = shape.denoiser.in_channels - shape.vae.z_dim
    return _CONDITION_COPIES * latent * (added if added > 0 else shape.vae.z_dim) * FLOAT32


def _picture_work(shape: ModelShape, job: Job, course: Course, setting: Setting) -> Peak:
    """Pictures as float32 pixels, put together, then encoded."""
    pixels = course.encoded * job.frame_bytes
    itemsize = ITEMSIZE[setting.vae_dtype]
    encoded = encode_work(shape.vae, course.encoded, job.height, job.width, itemsize, setting.threads)
    tiling = setting.plan.tiling
    if tiling is not None and max(job.height, job.width) > tiling.size:
        tall, wide = tiles_of(job.height, job.width, tiling.size, tiling.stride).largest
        encoded = encode_work(shape.vae, course.encoded, tall, wide, itemsize, setting.threads)
    # The larger VAE takes pixels in another order, all at once.
    patched = pixels * itemsize // FLOAT32 if shape.vae.patch_size > 1 else 0
    return higher(Peak(pixels, pixels), encoded.peak + patched) + course.beside


def _decode(shape: ModelShape, job: Job, course: Course, setting: Setting) -> Peak:
    itemsize = ITEMSIZE[setting.vae_dtype]
    frame = job.height * job.width * COLOURS * itemsize
    video, latents = course.piece * frame, shape.vae.latent(course.piece, job.height, job.width)[0]
    together = Peak(course.joined, course.joined)
    tiling = setting.plan.tiling
    if tiling is None or max(job.height, job.width) <= tiling.size:
        work = decode_work(shape.vae, job.height, job.width, itemsize, setting.threads, latents)
        if setting.streaming:
            return work.peak
        # Whole: every piece is joined to what was there, and the whole is clamped at the end.
        last = min(course.piece, shape.vae.scale_factor_temporal) * frame if latents > 1 else video
        clamped = work.carried + 2 * video
        return higher(higher(work.peak + (video - last), Peak(clamped, clamped)) + course.before, together)
    tiles = tiles_of(job.height, job.width, tiling.size, tiling.stride)
    tall, wide = tiles.largest
    work = decode_work(shape.vae, tall, wide, itemsize, setting.threads, latents)
    if setting.streaming:
        # The features of every tile are carried along at once; of each latent frame, the tiles of this row and the one
        # above are blended, and what was made of the rows before them waits.
        carried = work.carried * tiles.pixels // (tall * wide)
        waiting = tiles.two_rows + (job.height * job.width if len(tiles.heights) > 1 else 0)
        piece = waiting * shape.vae.scale_factor_temporal * COLOURS * itemsize
        return work.peak + (carried - work.carried + piece)
    overlapping = video * tiles.pixels // (job.height * job.width)
    return higher(higher(work.peak, Peak(3 * video, 3 * video)) + (overlapping + course.before), together)


# ---- which weights are resident ------------------------------------------------------------------------------------


def _resident(shape: ModelShape, setting: Setting, phase: Phase, work: Peak) -> PhaseMemory:
    dtypes = {name: _dtype_of(name, setting) for name in shape.weights}
    whole = part_bytes(shape, setting)
    used = _used_in(shape, phase)
    total = sum(whole.values())
    left = sum(whole[name] for name in shape.encoders) if _has_left(setting, phase) else 0
    plan, gpu = setting.plan, setting.device == "cuda"
    if not gpu:
        resident = total - left
        if plan.offload == "group":
            # As workers/file_weights.py: experts and text encoder stay in their files, what is small is loaded.
            resident = sum(
                part.mapped_rest(dtypes[name]) if name in IN_FILES else whole[name]
                for name, part in shape.weights.items()
            )
        return PhaseMemory(resident, work.allocated, work.tensors, overhead=WORKER_BYTES)
    if plan.offload == "none":
        on_device, host = total - left, 0
    elif plan.offload == "model":
        on_device, host = max(whole[name] for name in used), total
    elif plan.offload == "group":
        on_device, host = _grouped(shape, setting, used, dtypes, whole), 0 if _on_disk(plan) else total
    else:
        on_device = max(shape.weights[name].largest_tensor(dtypes[name]) for name in used)
        host = total
    return PhaseMemory(
        weights=on_device,
        work=work.allocated,
        tensors=work.tensors,
        host_weights=host,
        overhead=WORKER_BYTES + CUDA_HOST_BYTES,
        device_overhead=CUDA_CONTEXT_BYTES,
        on_gpu=True,
    )


def part_bytes(shape: ModelShape, setting: Setting) -> Mapping[str, int]:
    """Return the bytes of each part in the precision in which it is loaded."""
    return {name: part.bytes_in(_dtype_of(name, setting)) for name, part in shape.weights.items()}


def _loading(shape: ModelShape, setting: Setting) -> int:
    """Bytes of weights that are in main memory while they are loaded, where that is more than what stays there."""
    if setting.plan.layerwise_casting is None:
        # What ends on the GPU was made in main memory first, all of it.
        on_gpu = setting.device == "cuda" and setting.plan.offload == "none"
        return sum(part.made_in(_dtype_of(name, setting)) for name, part in shape.weights.items()) if on_gpu else 0
    # An expert that is not stored in 8 bits yet, beside all else; the other one may be so already.
    before, after = part_bytes(shape, setting), part_bytes(shape.cast, setting)
    return sum(after.values()) + max((before[name] - after[name] for name in shape.experts), default=0)


def _dtype_of(name: str, setting: Setting) -> Dtype:
    return setting.vae_dtype if name == "vae" else setting.dtype


def _used_in(shape: ModelShape, phase: Phase) -> tuple[str, ...]:
    if phase == "text_encode":
        return (*shape.encoders, "vae") if "vae" in shape.weights else shape.encoders
    if phase == "decode":
        return ("vae",)
    return (shape.experts[0 if phase == "denoise_high" else -1],)


def _has_left(setting: Setting, phase: Phase) -> bool:
    return setting.plan.text_encoder == "leave" and phase != "text_encode"


def _on_disk(plan: PlanSpec) -> bool:
    return plan.group is not None and plan.group.disk


def _grouped(
    shape: ModelShape,
    setting: Setting,
    used: tuple[str, ...],
    dtypes: Mapping[str, Dtype],
    whole: Mapping[str, int],
) -> int:
    """Bytes at hand with group offloading: of each expert and encoder one group at a time. The VAE stays whole: its
    convolutions are small, and its features are what takes room."""
    group = setting.plan.group
    assert group is not None
    at_once = 2 if group.use_stream else 1
    moved = [
        _one_group(shape.weights[name], dtypes[name], group.level, group.blocks_per_group, at_once)
        for name in used
        if name != "vae"
    ]
    return max(moved, default=0) + whole.get("vae", 0)


def _one_group(part: ComponentWeights, dtype: Dtype, level: str, blocks: int, at_once: int) -> int:
    if level == "leaf_level":
        return at_once * part.largest_tensor(dtype)
    # What belongs to no block is one group of its own, which stays while blocks pass.
    return part.outside_blocks(dtype) + at_once * blocks * part.largest_block(dtype)
