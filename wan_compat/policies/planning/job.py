"""Between a job and planning: shape of the model that was decided on, what is asked for, what the plan changes."""

from __future__ import annotations

import dataclasses

from wan_compat.policies.models import ModelDecision
from wan_compat.policies.planning.candidates import Wishes
from wan_compat.policies.planning.choice import Choice
from wan_compat.policies.planning.courses import Job
from wan_compat.policies.planning.estimate import part_bytes
from wan_compat.policies.planning.machine import GpuFacts
from wan_compat.policies.planning.shapes import ModelShape, model_shape
from wan_compat.protocol.values import GenerationParams, GenerationRequest, GpuSpec


def shape_of(model: ModelDecision) -> ModelShape | None:
    """Return the shape of a model; None where the headers of its parts are not known (a repository's own classes)."""
    pipeline = model.pipeline
    classes = {part.name: part.class_name for part in pipeline.components if part.dtype is not None}
    if pipeline.code is not None or any(not model.tensors.get(name) for name in classes):
        return None
    folded = {part.name: part.quantization for part in pipeline.components if part.quantization is not None}
    return model_shape(
        pipeline.pipeline_class,
        classes,
        model.tensors,
        model.transformer_config,
        model.vae_config,
        expand_timesteps=pipeline.expand_timesteps,
        quantized=folded,
        laid_over=model.lora_numbers,
        streams=pipeline.frames == "vae",
        size_multiple=model.size_multiple,
        copied=not folded and not pipeline.loras and all(part.source is None for part in pipeline.components),
    )


def job_of(model: ModelDecision, params: GenerationParams, at_once: int = 1) -> Job:
    """Return what is to be made, as far as memory depends on it; `at_once`: videos that are denoised together."""
    frames, way = params.frames, model.way
    roles = [item.role for item in params.media]
    return Job(
        height=frames.height,
        width=frames.width,
        num_frames=frames.num_frames,
        guidance=params.guidance_scale > 1,
        text_tokens=params.max_sequence_length,
        media=frozenset(roles) | frozenset(way.inputs.needs if way is not None else ()),
        context=way.inputs.context.at_most if way is not None and way.inputs.context is not None else 0,
        references=roles.count("reference"),
        steps=params.num_inference_steps,
        at_once=at_once,
    )


def at_once_of(request: GenerationRequest) -> int:
    """Return how many videos of a request are denoised together at most."""
    return min(request.num_videos, request.videos_at_once)


def wishes_of(request: GenerationRequest) -> Wishes:
    """Return what a request asks for by name."""
    return Wishes(
        precision=request.precision,
        offload=request.offload,
        vae_tiling=request.vae_tiling,
        cache=request.cache,
        attention_backend=request.attention_backend,
        layerwise_casting=request.layerwise_casting,
        on_gpu=request.device.startswith("cuda"),
    )


def gpu_spec(gpu: GpuFacts | None) -> GpuSpec | None:
    """Return what a worker is told of its GPU. That the driver tells it was looked at before (policies/gpus.py)."""
    if gpu is None or gpu.uuid is None or gpu.minor is None or gpu.address is None:
        return None
    return GpuSpec(uuid=gpu.uuid, minor=gpu.minor, address=gpu.address, library_folder=gpu.library_folder)


def with_plan(model: ModelDecision, choice: Choice) -> ModelDecision:
    """Return the model as the plan has it loaded: precision of each part, device, and what is done to it."""
    setting = choice.chosen.candidate.setting
    pipeline = model.pipeline
    components = tuple(
        part
        if part.dtype is None
        else part.model_copy(update={"dtype": setting.vae_dtype if part.name == "vae" else setting.dtype})
        for part in pipeline.components
    )
    streaming = pipeline.streaming if setting.streaming or pipeline.frames == "pipeline" else "never"
    shape = shape_of(model)
    weight_bytes = model.weight_bytes
    if shape is not None:
        weight_bytes = sum(part_bytes(shape, setting).values())  # of loading; layers are stored in fewer bits after it
    return dataclasses.replace(
        model,
        pipeline=pipeline.model_copy(
            update={
                "components": components,
                "device": setting.device,
                "gpu": gpu_spec(choice.machine.gpu) if setting.device == "cuda" else None,
                "plan": setting.plan,
                "streaming": streaming,
            }
        ),
        weight_bytes=weight_bytes,
        reasons=(*model.reasons, *choice.reasons),
    )
