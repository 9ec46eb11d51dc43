"""A pipeline that takes other arguments than we pass: what its signature says is passed under its own names, what it
cannot take is left out, what it wants besides and can only mean one thing is filled in. Each is told.

For code of a repository, and for classes of another version of diffusers. What is asked of the classes that this
package knows stands in arguments.py and families.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wan_compat.protocol.values import GenerationParams
from wan_compat.workers.own_pipeline import ANYTHING

MAX_TOLD = 16  # as many as the protocol takes

# Our names -> those that other programs have for the same. The ones with `frame_num` are those of Wan's own program
# (Wan-Video/Wan2.1 wan/text2video.py).
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("input_prompt", "text_prompt", "prompts", "text"),
    "negative_prompt": ("n_prompt", "neg_prompt", "negative_prompts"),
    "num_frames": ("frame_num", "video_length", "num_video_frames", "n_frames"),
    "num_inference_steps": ("sampling_steps", "num_steps", "num_sampling_steps", "steps"),
    "guidance_scale": ("guide_scale", "cfg_scale", "cfg"),
    "num_videos_per_prompt": ("num_images_per_prompt", "num_samples"),
}
# What says nothing about the video, or has the same value in every pipeline that asks for it.
_LEFT_OUT_IN_SILENCE = frozenset({"output_type"})
_EVIDENT: Mapping[str, Any] = {
    "batch_size": 1,
    "num_videos_per_prompt": 1,
    "num_images_per_prompt": 1,
    "num_samples": 1,
    "eta": 0.0,
    "return_dict": True,
    "latents": None,
    "prompt_embeds": None,
    "negative_prompt_embeds": None,
    "callback": None,
    "callback_on_step_end": None,
    "attention_kwargs": None,
}


def fit_call(
    given: Mapping[str, Any], taken: frozenset[str], wanted: Iterable[str], params: GenerationParams, device: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a pipeline is called with, and what was done to make it so.

    Args:
        given: As a Wan pipeline would be called.
        taken: The names of its arguments; `ANYTHING` among them if it takes whatever it is given.
        wanted: Those without which it cannot be called.
        params: Of the job.
        device: Where it computes.
    """
    call, told = dict(given), []
    for name in given:
        if name in taken:
            continue
        other = next((item for item in OTHER_NAMES.get(name, ()) if item in taken and item not in call), None)
        if other is not None:
            call[other] = call.pop(name)
            told.append(f"{name} is passed as {other}")
        elif name == "generator" and "seed" in taken:
            call["seed"] = params.seed
            del call[name]
            told.append("generator is passed as seed")
        elif ANYTHING not in taken:
            value = call.pop(name)
            if value is not None and name not in _LEFT_OUT_IN_SILENCE:
                told.append(f"the pipeline takes no {name}: it is left out")
    evident = {**_EVIDENT, "seed": params.seed, "device": torch.device(device)}
    for name in wanted:
        if name not in call and name in evident:
            call[name] = evident[name]
            told.append(f"the pipeline wants {name}: it gets {evident[name]}")
    return call, tuple(told[:MAX_TOLD])


def lacking(call: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return those of our names that a call passes in no form: without them it would make another video, or none."""
    return tuple(name for name in names if call.keys().isdisjoint((name, *OTHER_NAMES.get(name, ()))))
