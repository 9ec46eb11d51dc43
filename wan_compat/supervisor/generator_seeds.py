"""The seed of a `torch.Generator` that a program holds, without importing torch: its class comes with the object."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from wan_compat.protocol.errors import InvalidRequest, PipelineFeatureMissing
from wan_compat.protocol.values import MAX_SEED


def take_seeds(generator: Any) -> list[int | None]:
    """Return the seed of each generator: a `torch.Generator`, a number, a list of these, or None for a drawn seed.

    A generator is used up by it, as by a pipeline: the next call with it is an error until it is seeded again. Going on
    where it stopped would need its state in the worker, and nobody's bytes but numbers go there.

    Raises:
        InvalidRequest: Something else, or a seed out of range.
        PipelineFeatureMissing: A generator that has drawn numbers since it was seeded.
    """
    generators = generator if isinstance(generator, list | tuple) else [generator]
    return [_take_seed(one) for one in generators]


def _take_seed(generator: Any) -> int | None:
    if generator is None:
        return None
    if isinstance(generator, int) and not isinstance(generator, bool):
        seed = generator
    elif hasattr(generator, "initial_seed") and hasattr(generator, "get_state"):
        seed = _use_up(generator)
    else:
        raise InvalidRequest(
            f"`generator` is a {type(generator).__name__}", hint="give a torch.Generator or its seed as a number"
        )
    if not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(f"the seed {seed} is out of range", hint=f"use 0 to {MAX_SEED}")
    return seed


def _use_up(generator: Any) -> int:
    seed = int(generator.initial_seed())
    fresh = type(generator)(device=generator.device)
    fresh.manual_seed(seed)
    if not bool((fresh.get_state() == generator.get_state()).all()):
        raise PipelineFeatureMissing(
            f"the generator has drawn numbers since it was seeded with {seed}, and a worker cannot go on from there",
            hint="seed it again before each call: generator.manual_seed(...)",
        )
    torch: Any = sys.modules["torch"]
    if generator.device.type != "cpu":
        warnings.warn(
            f"noise is drawn on the CPU, with the seed of the generator on {generator.device}: "
            "the video is another one than with the noise of that device",
            stacklevel=5,
        )
    torch.rand(1, generator=generator, device=generator.device)
    return seed
