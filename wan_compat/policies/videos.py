"""The videos of one job: which are made together, what each is called, and what would make the rest."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator

from wan_compat.policies.requests import ResolvedRequest
from wan_compat.protocol.values import GenerationParams, GenerationRequest, seed_after


@dataclasses.dataclass(frozen=True)
class Round:
    """Videos that are denoised together: `size` of them from number `first` on, counted from 0 through the job."""

    first: int
    size: int

    def after(self, finished: int) -> Round:
        """Return what is left once `finished` of them stand."""
        return Round(self.first + finished, self.size - finished)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + self.size))


def rounds(num_videos: int, at_once: int) -> list[Round]:
    """Return the rounds of a job, in their order; the last one may be smaller."""
    return [Round(first, min(at_once, num_videos - first)) for first in range(0, num_videos, at_once)]


def output_of(output: str, number: int, num_videos: int) -> str:
    """Return the path of video `number`, from 0: `fox.mp4` itself of one, else `fox-1.mp4`, or `fox-01.mp4` of ten and
    more, so that names sort as the videos do."""
    if num_videos == 1:
        return output
    stem, suffix = os.path.splitext(output.rstrip("/"))
    return f"{stem}-{number + 1:0{len(str(num_videos))}}{suffix}"


def outputs_of(output: str, num_videos: int) -> list[str]:
    """Return the paths of all videos of a job."""
    return [output_of(output, number, num_videos) for number in range(num_videos)]


def what_is_left(finished: int, num_videos: int, next_seed: int, output: str | None) -> str:
    """Return the options that make the videos which a failed job did not, under names that none of the others has."""
    left = num_videos - finished
    options = f"--seed {next_seed}" + (f" --num-videos {left}" if left > 1 else "")
    if output is None:
        return options
    stem, suffix = os.path.splitext(output.rstrip("/"))
    name = output_of(output, finished, num_videos) if left == 1 else f"{stem}-more{suffix}"
    return f"{options} --output {shlex.quote(name)}"


def params_of(params: GenerationParams, wanted: Round) -> GenerationParams:
    """Return what a worker is told to make in one round."""
    seed = seed_after(params.seed, wanted.first)
    return params.model_copy(update={"seed": seed, "videos_at_once": wanted.size})


def resolved_of(resolved: ResolvedRequest, number: int, together: Round) -> ResolvedRequest:
    """Return with what one video of several was made; its seed is its own."""
    seed = seed_after(resolved.params.seed, number)
    params = resolved.params.model_copy(update={"seed": seed, "videos_at_once": together.size})
    return dataclasses.replace(resolved, params=params)


def remade_by(request: GenerationRequest, resolved: ResolvedRequest, together: Round, number: int) -> GenerationRequest:
    """Return what makes one video of several again, to the byte: itself alone, or all that were denoised with it."""
    first = number if together.size == 1 else together.first
    return request.model_copy(
        update={
            "seed": seed_after(resolved.params.seed, first),
            "num_videos": together.size,
            "videos_at_once": together.size,
        }
    )
