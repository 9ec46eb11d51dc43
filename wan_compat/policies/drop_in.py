"""What a script written for diffusers may ask of `SandboxedPipeline`, and what is said where the answer is no.

Names, their order and defaults are those of diffusers' Wan pipelines (`WanPipeline.__call__` and its three sisters;
tests compare them with the installed library). What a pipeline does with objects of its own process, tensors, modules,
schedulers, cannot be done from outside of the sandbox: each such name has its alternative here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wan_compat.protocol.errors import InvalidRequest, PipelineFeatureMissing
from wan_compat.protocol.values import MAX_VIDEOS, GenerationRequest, seed_after

# What a script gets that leaves these out. diffusers' signature has them, not the family's recommendation: the same
# script shall make the same video. Pipelines of Wan's relatives have others, which `family_defaults.py` knows.
CALL_DEFAULTS: Mapping[str, int | float] = {
    "height": 480,
    "width": 832,
    "num_frames": 81,
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
}
WITH_CALL_DEFAULTS = frozenset({"WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"})
OUTPUT_TYPES = ("np", "pil", "pt")

_LATENTS = "the noise is drawn in the worker, from the seed: give `generator` or a seed"
_EMBEDS = "prompts are encoded in the worker: give `prompt` and `negative_prompt`"
_SCHEDULER = (
    "the model's own scheduler runs, as its scheduler_config.json has it: change that file in a copy of the model"
)
_PLAN = (
    "the plan decides what lies where: enable_model_cpu_offload(), enable_sequential_cpu_offload(), vae.enable_tiling()"
)
_MODULE = "modules live in the worker: give the path of a weight file to from_pretrained (transformer=..., vae=...)"
_TRANSFORMER = f"{_MODULE}; attention_backend and layerwise_casting of from_pretrained are for all transformers"
_CODE = "leave it out: no option makes a repository's code run (docs/trust.md says what does)"
_ATTENTION = "give attention_backend to from_pretrained, by diffusers' name of a backend"
_LORA = "load_lora_weights, set_adapters and unload_lora_weights are there; what they load is applied at the next call"

# Argument of a call -> what to do instead.
CALL_INSTEAD: Mapping[str, str] = {
    "latents": _LATENTS,
    "timesteps": _SCHEDULER,
    "sigmas": _SCHEDULER,
    "prompt_embeds": _EMBEDS,
    "negative_prompt_embeds": _EMBEDS,
    "image_embeds": "pictures are encoded in the worker: give `image`",
    "attention_kwargs": _ATTENTION,
}
# Argument of from_pretrained -> what to do instead.
LOAD_INSTEAD: Mapping[str, str] = {
    "custom_pipeline": _CODE,
    "custom_revision": _CODE,
    "trust_remote_code": _CODE,
    "device_map": _PLAN,
    "max_memory": "give memory_limit_bytes: the worker's cap, which the plan keeps below",
    "quantization_config": "give quantize, such as {'transformer': 'int8'}",
    "scheduler": _SCHEDULER,
    "tokenizer": _MODULE,
    "image_processor": _MODULE,
    "revision": "download that revision first (`wan-compat check MODEL --download`) and give its folder",
    "cache_dir": "set HF_HOME, or give the folder of the model itself",
    "token": "download the model first (`wan-compat check MODEL --download`)",
    "force_download": "download the model first (`wan-compat check MODEL --download`)",
    "variant": "give a folder with the weights that are meant",
    "use_onnx": "use a model with safetensors",
}
# Argument of from_pretrained -> the value that asks for what is done anyway.
LOAD_AS_IS: Mapping[str, tuple[object, ...]] = {
    "use_safetensors": (None, True),
    "local_files_only": (None, True),
    "trust_remote_code": (None, False),
    "low_cpu_mem_usage": (None, True, False),
}
# Attribute or method of a pipeline -> what to do instead.
ATTRIBUTE_INSTEAD: Mapping[str, str] = {
    "scheduler": _SCHEDULER,
    "transformer": _TRANSFORMER,
    "transformer_2": _TRANSFORMER,
    "text_encoder": _MODULE,
    "image_encoder": _MODULE,
    "tokenizer": _MODULE,
    "components": _MODULE,
    "config": "Supervisor().check(model) tells what a model's configuration says",
    "save_pretrained": "the model's folder is as it was: copy it; `wan-compat convert` writes other layouts",
    "from_pipe": "call from_pretrained again: workers of one model share its pages in memory",
    "encode_prompt": _EMBEDS,
    "prepare_latents": _LATENTS,
    "enable_attention_slicing": _ATTENTION,
    "enable_xformers_memory_efficient_attention": _ATTENTION,
    "set_attn_processor": _ATTENTION,
    "fuse_lora": _LORA,
    "unfuse_lora": _LORA,
    "delete_adapters": _LORA,
    "hf_device_map": _PLAN,
    "reset_device_map": _PLAN,
}
_NO_OTHER = "run the script with diffusers itself where you trust the model, or use Supervisor and GenerationRequest"


def missing_argument(name: str) -> PipelineFeatureMissing:
    """Return the error for an argument of a call that is not taken."""
    return PipelineFeatureMissing(
        f"a sandboxed pipeline takes no argument {name!r}", hint=CALL_INSTEAD.get(name, _NO_OTHER)
    )


def missing_attribute(name: str, owner: str = "pipeline") -> PipelineFeatureMissing:
    """Return the error for an attribute or a method that is not there."""
    return PipelineFeatureMissing(
        f"a sandboxed {owner} has no {name!r}: the real one lives in a worker",
        hint=ATTRIBUTE_INSTEAD.get(name, _NO_OTHER),
    )


def check_load_arguments(others: Mapping[str, Any]) -> None:
    """Raise PipelineFeatureMissing for an argument of `from_pretrained` that asks for what is not done."""
    for name, value in others.items():
        if value in LOAD_AS_IS.get(name, ()):
            continue
        raise PipelineFeatureMissing(
            f"from_pretrained of a sandboxed pipeline takes no {name}={value!r:.80}"
            if name in LOAD_INSTEAD or name in LOAD_AS_IS
            else f"from_pretrained of a sandboxed pipeline takes no argument {name!r}",
            hint=LOAD_INSTEAD.get(name, _NO_OTHER),
        )


def prompts_of(prompt: Any, negative_prompt: Any, videos_each: Any) -> list[tuple[str, str | None]]:
    """Return prompt and negative prompt of each video, in diffusers' order: all videos of the first prompt come first.

    Raises:
        InvalidRequest: No prompt, or lists of different lengths.
    """
    if prompt is None:
        raise InvalidRequest("a sandboxed pipeline needs `prompt`", hint=_EMBEDS)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise InvalidRequest(
            f"`prompt` is a {type(prompt).__name__}; a text or a list of texts is needed",
            hint="give pictures and videos by name: image=..., video=...",
        )
    negatives = negative_prompt if isinstance(negative_prompt, list | tuple) else [negative_prompt] * len(prompts)
    if len(negatives) != len(prompts) or not all(one is None or isinstance(one, str) for one in negatives):
        raise InvalidRequest(
            f"`negative_prompt` does not go with {len(prompts)} prompts", hint="give one text, or one for each prompt"
        )
    if not isinstance(videos_each, int) or videos_each < 1:
        raise InvalidRequest(f"num_videos_per_prompt is {videos_each!r}; 1 or more is needed")
    return [pair for pair in zip(prompts, negatives, strict=True) for _ in range(videos_each)]


def joined(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """Return the jobs that make these videos, in their order: those of one prompt in one job, where their seeds follow
    each other, or are all to be drawn."""
    jobs: list[GenerationRequest] = []
    for request in requests:
        last = jobs[-1] if jobs else None
        if last is not None and last.num_videos < MAX_VIDEOS:
            seed = None if last.seed is None else seed_after(last.seed, last.num_videos)
            if request == last.model_copy(update={"seed": seed, "num_videos": 1}):
                jobs[-1] = last.model_copy(update={"num_videos": last.num_videos + 1})
                continue
        jobs.append(request)
    return jobs


def spread_seeds(seeds: Sequence[int | None], videos: int) -> list[int | None]:
    """Return a seed for each video: as given, or counted up from the only one.

    diffusers draws the noise of a batch from one stream, which no seed continues: of several videos from one generator
    the first is the one that diffusers makes, the others are others.

    Raises:
        InvalidRequest: Neither one seed nor one for each.
    """
    if len(seeds) == videos:
        return list(seeds)
    if len(seeds) != 1:
        raise InvalidRequest(
            f"{len(seeds)} generators were given for {videos} videos", hint="give one, or one for each"
        )
    first = seeds[0]
    return [None if first is None else seed_after(first, number) for number in range(videos)]
