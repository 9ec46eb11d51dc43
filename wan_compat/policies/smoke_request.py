"""The smallest clip that a model can make, and what has to be made up for it.

Nothing is guessed about families: lengths and steps are tried on the very checks that refuse requests, in rising order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from wan_compat.policies.family_defaults import family_defaults
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.pipelines import Way
from wan_compat.policies.requests import resolve_request
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MediaRole
from wan_compat.protocol.values import GenerationRequest, TaskName

PROMPT = "a red ball rolls over green grass"
SEED = 0
# In pixels before they are rounded up. Two sides that differ show a transposed picture; less than this, and some
# attention windows and image encoders have nothing to work on.
_HEIGHT, _WIDTH = 64, 96
_MAX_PIECES = 64  # lengths tried: beyond this the family's own length is taken


@dataclasses.dataclass(frozen=True)
class SmokeRequest:
    """Sizes, steps and the media that a task needs, by role; videos among them have `media_frames`."""

    task: TaskName
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    media: tuple[MediaRole, ...]
    media_frames: int


def media_for_way(way: Way | None) -> tuple[MediaRole, ...]:
    """Return the roles that have to be given: those that are needed, and the first where one of several is."""
    if way is None:
        return ()
    needs = way.inputs.needs
    one_of = way.inputs.one_of[:1] if not set(way.inputs.one_of) & set(needs) else ()
    return (*needs, *one_of)


def smoke_request(model: ModelDecision) -> SmokeRequest:
    """Return the smallest request that this model's own checks let pass, for the task that it was decided for."""
    multiple = model.size_multiple
    height, width = (_round_up(side, multiple) for side in (_HEIGHT, _WIDTH))
    width = width if width != height else width + multiple
    task: TaskName = model.way.task if model.way is not None else "t2v"
    media = media_for_way(model.way)
    context = model.way.inputs.context if model.way is not None else None
    before = context.at_most if context is not None else 0
    for num_frames, steps in _lengths(model, task):
        request = GenerationRequest(
            model="smoke", prompt=PROMPT, height=height, width=width, num_frames=num_frames, num_inference_steps=steps
        )
        try:
            resolve_request(request, model, seed=SEED)
        except InvalidRequest:
            continue
        return SmokeRequest(task, height, width, num_frames, steps, media, max(num_frames, before))
    defaults = family_defaults(model)
    frames = defaults.num_frames
    return SmokeRequest(task, height, width, frames, defaults.num_inference_steps, media, max(frames, before))


def _lengths(model: ModelDecision, task: TaskName) -> Iterator[tuple[int, int]]:
    """Yield frames and steps, small ones first. One latent frame is a picture; two show that time works."""
    step = model.frame_multiple
    frames = [1] if task == "t2i" else [step * pieces + 1 for pieces in range(1, _MAX_PIECES)]
    for num_frames in frames:
        for steps in (2, 3):
            yield num_frames, steps


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
