"""The cheapest way that fits, or why none does and what would: fewer frames, a smaller size, more memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import accumulate

from wan_compat.policies.planning.candidates import Candidate, Wishes, candidates
from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.estimate import Phase, PhaseMemory, Setting, estimate, peak
from wan_compat.policies.planning.machine import MachineFacts
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.policies.planning.weights import Dtype
from wan_compat.protocol.errors import InvalidRequest, MemoryExceeded
from wan_compat.protocol.plan import PlanSpec

IN_8_BITS = "store the transformer's layers in 8 bits: --layerwise-casting float8_e4m3fn"
_LEAST_LATENTS = 2  # after the first, of a clip that is worth more than a smaller size
_FRACTIONS = (0.85, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the sides, tried in this order


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One way, what it takes, and why not if it does not fit."""

    candidate: Candidate
    phases: Mapping[Phase, PhaseMemory]
    vram_bytes: int
    ram_bytes: int
    short: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not self.short


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen among what was weighed. Without a way that fits, `chosen` is the one nearest to it.

    `nearest` is a job that would fit as things are, where the one that was asked for does not; None where none would.
    `fits_in_8_bits` is whether that one would, with layers stored in 8 bits, which nobody asked for.
    """

    job: Job
    machine: MachineFacts
    weighed: tuple[Evaluated, ...]
    chosen: Evaluated
    naive_bytes: int
    nearest: Job | None = None
    fits_in_8_bits: bool = False

    @property
    def fits(self) -> bool:
        return self.chosen.fits

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why this way: what it does, and what the cheaper ones lacked."""
        cheaper = (item for item in self.weighed if item.candidate.cost.factor < self.chosen.candidate.cost.factor)
        lacking = tuple(f"not {item.candidate.name}: {item.short[0]}" for item in cheaper if item.short)
        return (*self.chosen.candidate.reasons, *lacking)

    @property
    def reduction(self) -> float:
        """By how much the peak is below that of a script that does nothing about memory, 0 to 1."""
        used = self.chosen.vram_bytes or self.chosen.ram_bytes
        return max(0.0, round(1 - used / self.naive_bytes, 3)) if self.naive_bytes else 0.0


def choose(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes | None = None) -> Choice:
    """Weigh every way and take the cheapest that fits.

    Raises:
        InvalidRequest: A wish that means nothing on this machine.
    """
    wishes = wishes or Wishes()
    weighed = _weigh(shape, job, machine, wishes)
    fitting = next((item for item in weighed if item.fits), None)
    chosen = fitting or min(weighed, key=lambda item: _excess(item, machine))
    return Choice(
        job=job,
        machine=machine,
        weighed=weighed,
        chosen=chosen,
        naive_bytes=_naive(shape, job, chosen.candidate.setting),
        nearest=None if fitting is not None else _nearest(shape, job, machine, wishes),
        fits_in_8_bits=fitting is None and _fits_in_8_bits(shape, job, machine, wishes),
    )


def require_fit(choice: Choice, model: str) -> None:
    """Raise what tells a user that nothing fits, with the nearest that does.

    Raises:
        MemoryExceeded: It does not fit.
    """
    if choice.fits:
        return
    job, least = choice.job, choice.chosen
    fixes = []
    if choice.nearest is not None:
        fixes.append(describe_nearest(job, choice.nearest))
    if choice.fits_in_8_bits:
        fixes.append(f"{IN_8_BITS}, which fits and changes pixels")
    if job.at_once > 1:
        fixes.insert(0, "leave --videos-at-once out: they are then made one after the other, in the memory of one")
    if least.vram_bytes > choice.machine.vram_bytes and choice.machine.gpu is not None:
        fixes.append(f"use a GPU with {_gigabytes(least.vram_bytes)} free")
    if least.ram_bytes > choice.machine.ram_limit_bytes:
        fixes.append(f"allow a worker {_gigabytes(least.ram_bytes)} of memory (--memory-limit), if the machine has it")
    fixes.append("use a smaller model")
    raise MemoryExceeded(
        f"{_videos(job)}{job.num_frames} frames of {job.width}x{job.height} with {model} do not fit: {least.short[0]}, "
        f"with the leanest plan ({least.candidate.name})",
        fixes=fixes,
        details={
            "plan": least.candidate.name,
            "ram_bytes": least.ram_bytes,
            "ram_limit_bytes": choice.machine.ram_limit_bytes,
            "vram_bytes": least.vram_bytes,
            "vram_limit_bytes": choice.machine.vram_bytes,
            "nearest": None if choice.nearest is None else _size_of(choice.nearest),
        },
    )


def _videos(job: Job) -> str:
    return "" if job.at_once == 1 else f"{job.at_once} videos at once of "


def describe_nearest(asked: Job, nearest: Job) -> str:
    """Return the options that make it fit."""
    parts = []
    if (asked.width, asked.height) != (nearest.width, nearest.height):
        parts.append(f"--width {nearest.width} --height {nearest.height}")
    if asked.num_frames != nearest.num_frames:
        parts.append(f"--num-frames {nearest.num_frames}")
    return f"ask for {' '.join(parts)}, which fits"


def _size_of(job: Job) -> dict[str, int]:
    return {"width": job.width, "height": job.height, "num_frames": job.num_frames}


def _weigh(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes) -> tuple[Evaluated, ...]:
    return tuple(_evaluate(shape, job, machine, item) for item in candidates(shape, job, machine, wishes))


def _evaluate(shape: ModelShape, job: Job, machine: MachineFacts, candidate: Candidate) -> Evaluated:
    phases = estimate(shape, job, candidate.setting)
    vram, ram = peak(phases)
    short = []
    if vram > machine.vram_bytes:
        phase = max(phases, key=lambda name: phases[name].vram_bytes)
        short.append(f"{phase} takes {_gigabytes(vram)} of VRAM, {_gigabytes(machine.vram_bytes)} can be had")
    if ram > machine.ram_limit_bytes:
        phase = max(phases, key=lambda name: phases[name].ram_bytes)
        what = "loading" if phases[phase].is_loading else phase
        short.append(f"{what} takes {_gigabytes(ram)} of memory, {_gigabytes(machine.ram_limit_bytes)} can be had")
    return Evaluated(candidate, phases, vram, ram, tuple(short))


def _excess(item: Evaluated, machine: MachineFacts) -> tuple[float, float]:
    """How far from fitting, as a factor; then the cost."""
    over = max(item.ram_bytes / max(1, machine.ram_limit_bytes), item.vram_bytes / max(1, machine.vram_bytes))
    return over, item.candidate.cost.factor


def _naive(shape: ModelShape, job: Job, like: Setting) -> int:
    """Peak of a script that loads everything and decodes at once, on the same device."""
    dtype: Dtype = "float32" if like.device == "cpu" else "bfloat16"
    setting = Setting(like.device, dtype, "float32", PlanSpec(), streaming=False, threads=like.threads)
    vram, ram = peak(estimate(shape, job, setting))
    return vram or ram


def _fits_in_8_bits(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes) -> bool:
    if wishes.layerwise_casting is not None:
        return False
    try:
        weighed = _weigh(shape, job, machine, dataclasses.replace(wishes, layerwise_casting="float8_e4m3fn"))
    except InvalidRequest:  # it is quantised, or its weights are to stay in their files
        return False
    return any(item.fits for item in weighed)


def _nearest(shape: ModelShape, job: Job, machine: MachineFacts, wishes: Wishes) -> Job | None:
    """Return the largest smaller job that fits: fewer frames first, then smaller frames."""

    def fits(other: Job) -> bool:
        return any(item.fits for item in _weigh(shape, other, machine, wishes))

    lengths = _lengths(shape, job)
    if not lengths:  # the first chunk alone is longer
        return None
    sizes = list(_smaller(shape, job))
    for sized in sizes:
        if not fits(_with_frames(sized, lengths[0])):
            continue
        low, high = 0, len(lengths) - 1  # of them; `low` fits
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(_with_frames(sized, lengths[middle])) else (low, middle - 1)
        # One frame is no video; but where that is all, it is better than nothing.
        if low >= min(len(lengths) - 1, _LEAST_LATENTS) or sized is sizes[-1]:
            return _with_frames(sized, lengths[low])
    return None


def _lengths(shape: ModelShape, job: Job) -> list[int]:
    """Return the numbers of frames up to the job's that the model makes."""
    step = shape.vae.scale_factor_temporal
    latents = accumulate(shape.denoiser.chunks) if shape.denoiser.chunks else range(1, job.num_frames // step + 2)
    return [frames for count in latents if (frames := (count - 1) * step + 1) <= job.num_frames]


def _with_frames(job: Job, num_frames: int) -> Job:
    return dataclasses.replace(job, num_frames=num_frames)


def _smaller(shape: ModelShape, job: Job) -> Iterator[Job]:
    """Yield the job at its size, then at smaller ones of about its shape."""
    multiple = shape.size_multiple
    yield job
    for fraction in _FRACTIONS:
        height, width = (int(side * fraction) // multiple * multiple for side in (job.height, job.width))
        if min(height, width) >= multiple:
            yield dataclasses.replace(job, height=height, width=width)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
