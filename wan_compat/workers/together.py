"""Several videos from one call of a pipeline that diffusers has make one.

What is in the way is how a call counts its videos, and nothing in the models (diffusers 0.42.1, pipelines/wan):

    WanImageToVideoPipeline    repeats what an image encoder says for prompts, and not for videos of one prompt; so does
                               SkyReelsV2ImageToVideoPipeline
    WanVideoToVideoPipeline    sets num_videos_per_prompt to 1
    WanVACEPipeline            refuses lists of prompts and of generators, and control latents of more than one video

All of them count a batch by the embeddings of prompts, where they are given those. So the prompt is encoded first, as
the call would do it, and repeated for each video. Each draws its noise from a generator of its own. VACE's control
latents are computed as of one video and repeated; generators mean nothing to them, because the mode of what the VAE
encodes is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_TEXTS = ("prompt", "negative_prompt")
_WITH_IMAGE_ENCODER = ("WanImageToVideoPipeline", "SkyReelsV2ImageToVideoPipeline")
_CONTROL_LATENTS = ("prepare_video_latents", "prepare_masks")


@contextlib.contextmanager
def together(pipeline: Any, given: Mapping[str, Any], videos: int) -> Iterator[dict[str, Any]]:
    """Yield what makes `videos` videos when the pipeline is called with it, inside this context.

    Args:
        given: As for a pipeline that makes as many as num_videos_per_prompt says.
    """
    call = dict(given)
    if videos == 1 or not _counts_embeddings_only(pipeline):
        yield call
        return
    texts = {name: call.pop(name) for name in _TEXTS}
    with torch.no_grad():
        embedded, negative = pipeline.encode_prompt(
            **texts,
            do_classifier_free_guidance=call["guidance_scale"] > 1,
            num_videos_per_prompt=videos,
            max_sequence_length=call["max_sequence_length"],
            device=pipeline._execution_device,
        )
    call |= {"prompt_embeds": embedded, "negative_prompt_embeds": negative, "num_videos_per_prompt": 1}
    with _one_control_for_all(pipeline, videos):
        yield call


def _counts_embeddings_only(pipeline: Any) -> bool:
    name = type(pipeline).__name__
    if name in _WITH_IMAGE_ENCODER:
        return pipeline.transformer is not None and pipeline.transformer.config.image_dim is not None
    return name in ("WanVACEPipeline", "WanVideoToVideoPipeline")


@contextlib.contextmanager
def _one_control_for_all(pipeline: Any, videos: int) -> Iterator[None]:
    """Let VACE see one video where it prepares what controls it; elsewhere there is nothing of that."""
    if not hasattr(pipeline, "preprocess_conditions"):
        yield
        return
    preprocess = pipeline.preprocess_conditions

    def of_one(video: Any, mask: Any, references: Any, _batch_size: int, *sizes: Any) -> Any:
        return preprocess(video, mask, references, 1, *sizes)

    def repeated(prepare: Any) -> Any:
        def prepared(first: torch.Tensor, second: Any, *rest: Any) -> torch.Tensor:
            without = [None if isinstance(one, list) and _are_generators(one) else one for one in (second, *rest)]
            latents: torch.Tensor = prepare(first, *without)
            return latents.repeat(videos, *(1 for _ in latents.shape[1:]))

        return prepared

    pipeline.preprocess_conditions = of_one
    for name in _CONTROL_LATENTS:
        setattr(pipeline, name, repeated(getattr(pipeline, name)))
    try:
        yield
    finally:
        for name in ("preprocess_conditions", *_CONTROL_LATENTS):
            delattr(pipeline, name)


def _are_generators(values: list[Any]) -> bool:
    return all(isinstance(value, torch.Generator) for value in values)
