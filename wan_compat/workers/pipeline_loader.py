"""`WanPipelineLoader` and `WanPipelineWrapper`: a Wan pipeline in the process that calls, by the ways of a worker.

For programs that have torch and want the loader, the plans and the streaming decode without a supervisor. Nothing is
confined here: whoever loads a model this way trusts its files as far as safetensors and JSON can be trusted. Code of a
repository is never run; the classes come from the loader's tables.

Nothing is done twice: `load_wan_pipeline` calls `load_model`, `generate` calls the worker's `generate`, and plans go
through `apply_plan`, whoever made them.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import dataclasses
import glob
import inspect
import json
import os
import platform
import random
import time
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import ValidationError

from wan_compat._version import __version__
from wan_compat.protocol.errors import (
    InvalidRequest,
    ModelCorrupt,
    ModelIndexMissing,
    ModelNotCompatible,
    WanCompatError,
)
from wan_compat.protocol.media import MediaRole
from wan_compat.protocol.memory import MemoryEstimate
from wan_compat.protocol.messages import Generate
from wan_compat.protocol.plan import GroupOffload, Offload, PlanSpec, Tiling
from wan_compat.protocol.results import (
    GenerationMetadata,
    ProcessedFrames,
    SandboxReport,
    Timings,
    VideoGenerationResult,
)
from wan_compat.protocol.ring import RingLayout
from wan_compat.protocol.values import ComponentSpec, FrameSpec, GenerationParams, PipelineSpec
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.embeddings import keep_embeddings
from wan_compat.workers.estimate import estimate_memory
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.generation import free_memory, generate
from wan_compat.workers.loader import LoadedModel, load_model
from wan_compat.workers.media import Media
from wan_compat.workers.optimizations import apply_plan
from wan_compat.workers.streaming import FrameExit

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_MB = 1_000_000
_TYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_CAST = ("transformer", "transformer_2", "text_encoder")  # VAE and image encoder stay as they were loaded
# Beside its weights a GPU holds activations; with less than this share left for them, weights have to move.
_SHARE_FOR_WEIGHTS = 0.7
_ROLES: Mapping[str, MediaRole] = {
    "image": "image",
    "last_image": "last_image",
    "video": "video",
    "mask": "mask",
    "references": "reference",
    "pose_video": "pose_video",
    "face_video": "face_video",
    "background_video": "background_video",
}


@dataclasses.dataclass
class OptimizedPipeline:
    """A pipeline to which a plan was applied. `applied` names what was done, as a result's `optimizations_applied`."""

    pipeline: Any
    plan: PlanSpec
    applied: list[str]


class WanPipelineLoader:
    """Loads Wan pipelines into this process, and fits pipelines that are loaded already."""

    def load_wan_pipeline(self, model_path: str, **optimization_kwargs: Any) -> WanPipelineWrapper:
        """Load a folder in diffusers layout, with every tensor accounted for.

        Args:
            model_path: A folder with model_index.json.
            optimization_kwargs: `spec`, a whole PipelineSpec, or any of `precision`, `device`, `threads`, `plan`, and
                the fields of PlanSpec by name (`offload="group"`, `text_encoder="leave"`). Without a plan on a GPU,
                one is chosen by what is free there.

        Raises:
            InvalidRequest: The plan contradicts itself or the device.
            ModelIndexMissing, ModelCorrupt, ModelNotCompatible: The folder is no Wan pipeline that can be loaded.
        """
        spec = optimization_kwargs.pop("spec", None) or describe(model_path, **optimization_kwargs)
        return WanPipelineWrapper._of(load_model(spec, Cancellation(), lambda _: None, model_path), model_path)

    def apply_optimizations(self, pipeline: Any, available_vram: int) -> OptimizedPipeline:
        """Fit a loaded pipeline into `available_vram` megabytes of GPU memory; 0 means the CPU."""
        device = "cuda" if available_vram > 0 and torch.cuda.is_available() else "cpu"
        plan = plan_for(_sizes(pipeline), available_vram * _MB, device)
        return OptimizedPipeline(pipeline, plan, list(apply_plan(pipeline, plan, device)))

    def configure_precision(self, pipeline: Any, precision: Precision = "auto") -> Any:
        """Cast transformers and text encoder, as `from_pretrained` would have loaded them; returns the pipeline.

        "auto" is bfloat16 where a GPU computes in it, float16 on older ones, and float32 on CPUs, which compute fastest
        in it.
        """
        dtype = _TYPES[precision_for(precision)]
        for name in _CAST:
            part = getattr(pipeline, name, None)
            if part is not None:
                _cast(part, dtype)
        return pipeline

    def setup_cpu_offload(self, pipeline: Any, strategy: str = "sequential") -> Any:
        """Offload by `none`, `model`, `group`, `sequential` or `full`; returns the pipeline.

        Raises:
            InvalidRequest: No such strategy, or one that moves weights to a GPU where there is none.
        """
        if strategy not in ("none", "model", "group", "sequential", "full"):
            raise InvalidRequest(f"no offload strategy {strategy!r}", hint="use none, model, group, sequential or full")
        device = "cuda" if torch.cuda.is_available() and strategy != "full" else "cpu"
        apply_plan(pipeline, PlanSpec(offload=cast(Offload, strategy)), device)
        return pipeline


class WanPipelineWrapper:
    """A loaded pipeline that generates, tells what it will take, and cleans up after itself.

    Args:
        pipeline: Of diffusers, loaded.
        optimizations: What was done to it: `applied` (names), `plan` (PlanSpec), `device`, `streaming`, `model_path`.
    """

    def __init__(self, pipeline: Any, optimizations: dict[str, Any]) -> None:
        self.pipeline = pipeline
        self.optimizations = optimizations
        self._model: LoadedModel | None = None

    @classmethod
    def _of(cls, model: LoadedModel, path: str) -> WanPipelineWrapper:
        wrapper = cls(
            model.pipeline,
            {
                "applied": list(model.applied),
                "plan": model.spec.plan,
                "device": model.spec.device,
                "streaming": model.frame_exit is not None and model.frame_exit.streaming,
                "model_path": path,
            },
        )
        wrapper._model = model
        return wrapper

    def generate(self, prompt: str, **kwargs: Any) -> VideoGenerationResult:
        """Make one video and return its frames; what it took is freed, on errors too.

        Args:
            prompt: What to show.
            kwargs: Fields of GenerationParams and FrameSpec (`height`, `num_frames`, `seed`, ...), and pictures as PIL
                images: `image`, `last_image`, or lists of them: `video`, `mask`, `references`, ...

        Raises:
            InvalidRequest: Sizes, numbers or pictures that this pipeline does not take.
            UnusableFrames, MemoryExceeded: As a worker reports them.
        """
        model = self._loaded()
        media = Media({role: _pictures(kwargs.pop(name)) for name, role in _ROLES.items() if kwargs.get(name)}, ())
        params = _params(prompt, kwargs)
        if params.videos_at_once > 1:
            raise InvalidRequest("this makes one video at a time", hint="leave videos_at_once out, and call it again")
        writer = _InMemory(params.frames)
        fps = float(kwargs.get("fps", 16.0))
        started = time.perf_counter()
        count = bool(kwargs.get("count_memory", False))
        try:
            ended = generate(
                model,
                Generate(job=1, params=params, count_memory=count),
                writer,
                Cancellation(),
                lambda _: None,
                media,
            )
        except WanCompatError:
            raise
        except Exception as error:
            from wan_compat.workers.failures import translate

            raise translate(error, loading=False) from error
        finally:
            free_memory(model)
        total = time.perf_counter() - started
        peak = max(ended.peak_allocated_bytes.values(), default=0)
        return VideoGenerationResult(
            success=True,
            output_path=None,
            frames=ProcessedFrames(writer.frames, fps, len(writer.frames) / fps),
            generation_time=total,
            memory_used=peak,
            metadata=GenerationMetadata(
                model_path=str(self.optimizations.get("model_path", "")),
                pipeline_class=type(self.pipeline).__name__,
                optimizations_applied=[*self.optimizations.get("applied", []), *ended.applied],
                generation_params=params.model_dump(exclude={"frames", "media"}) | params.frames.model_dump(),
                system_info={"wan_compat": __version__, "python": platform.python_version()},
            ),
            errors=[],
            warnings=["NOT SANDBOXED: the model ran in the calling process"],
            timings=Timings(
                load_s=model.load_s,
                text_encode_s=ended.text_encode_s,
                denoise_s=ended.denoise_s,
                decode_s=ended.decode_s,
                total_s=total,
            ),
            sandbox=SandboxReport(tier="E", layers=[], memory_limit_bytes=0, self_test={}),
            peak=dict(ended.peak_allocated_bytes),
            recovery=[],
            output=None,
        )

    def estimate_memory_usage(self, **generation_kwargs: Any) -> MemoryEstimate:
        """Tell what a generation with these parameters will take, without running it (workers/estimate.py).

        Args:
            generation_kwargs: `height`, `width`, `num_frames`, `max_sequence_length` count; others are passed over.
                `available_bytes`: for `fits`; without it, what is free on the device now.
        """
        model = self._loaded()
        device = model.spec.device
        available = generation_kwargs.get("available_bytes")
        if available is None:
            available = torch.cuda.mem_get_info()[0] if device == "cuda" else None
        assert model.frame_exit is not None
        frames = _frames(generation_kwargs)
        return estimate_memory(
            self.pipeline,
            model.spec.plan,
            device,
            height=frames.height,
            width=frames.width,
            num_frames=frames.num_frames,
            max_sequence_length=int(generation_kwargs.get("max_sequence_length", 512)),
            streaming=model.frame_exit.streaming,
            available_bytes=available,
        )

    def _loaded(self) -> LoadedModel:
        """Return what `generate` works on; for a pipeline that somebody else loaded, it is made now."""
        if self._model is None:
            device = "cuda" if self.pipeline.device.type == "cuda" else "cpu"
            self.pipeline.set_progress_bar_config(disable=True)
            self._model = LoadedModel(
                pipeline=self.pipeline,
                spec=PipelineSpec(
                    pipeline_class=type(self.pipeline).__name__,
                    components=(_NOT_LOADED_HERE,),
                    device=cast(Literal["cpu", "cuda"], device),
                    plan=self.optimizations.get("plan") or PlanSpec(),
                    threads=torch.get_num_threads(),
                ),
                frame_exit=FrameExit(self.pipeline.vae, "auto"),
                parameters={},
                call_arguments=frozenset(inspect.signature(type(self.pipeline).__call__).parameters),
                load_s=0.0,
                embeddings=keep_embeddings(self.pipeline),
            )
        return self._model


_NOT_LOADED_HERE = ComponentSpec(name="vae", library="diffusers", class_name="AutoencoderKLWan", subfolder="vae")


class _InMemory(FrameWriter):
    """Takes frames as a worker's writer does, and keeps them: (num_frames, height, width, 3) uint8."""

    def __init__(self, frames: FrameSpec) -> None:
        super().__init__(None, 1, RingLayout(frames))  # type: ignore[arg-type]  # the ring is used where we override
        self.frames: np.ndarray = np.empty((frames.num_frames, frames.height, frames.width, 3), np.uint8)

    def _publish_frame(self, scaled: torch.Tensor) -> None:
        self.frames[self.published] = scaled.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        self.published += 1


def describe(
    model_path: str,
    *,
    precision: Precision = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
    plan: PlanSpec | None = None,
    **plan_fields: Any,
) -> PipelineSpec:
    """Return how a folder in diffusers layout is loaded: what its index names, by the loader's tables.

    Inside a supervised worker the supervisor decides this from the files, their headers and the policy.
    """
    try:
        with open(os.path.join(model_path, "model_index.json"), encoding="utf-8") as file:
            index = json.load(file)
    except FileNotFoundError as error:
        raise ModelIndexMissing(f"{model_path} has no model_index.json") from error
    except ValueError as error:
        raise ModelCorrupt(f"model_index.json of {model_path} is no JSON: {error}") from error
    if not isinstance(index, dict):
        raise ModelCorrupt(f"model_index.json of {model_path} is no JSON object")
    try:
        return _described(model_path, index, precision, device, threads, plan, plan_fields)
    except ValidationError as error:
        place = ".".join(str(item) for item in error.errors()[0]["loc"])
        raise ModelNotCompatible(f"{model_path}: {place}: {error.errors()[0]['msg']}") from error


def _described(
    model_path: str,
    index: dict[str, Any],
    precision: Precision,
    device: str,
    threads: int | None,
    plan: PlanSpec | None,
    plan_fields: dict[str, Any],
) -> PipelineSpec:
    on = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = precision_for(precision)
    components = []
    weights: dict[str, int] = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) < 2 or value[0] is None:
            continue
        files = glob.glob(os.path.join(glob.escape(os.path.join(model_path, name)), "*.safetensors"))
        weights[name] = sum(os.path.getsize(path) for path in files)
        kind = None if not files else dtype if name in _CAST else "float32"
        components.append(ComponentSpec(name=name, library=value[0], class_name=value[1], subfolder=name, dtype=kind))
    if plan is None and not plan_fields and on == "cuda":
        plan = plan_for(weights, torch.cuda.mem_get_info()[0], "cuda")
    return PipelineSpec(
        pipeline_class=index.get("_class_name", ""),
        components=tuple(components),
        boundary_ratio=index.get("boundary_ratio"),
        expand_timesteps=index.get("expand_timesteps") is True,
        device=cast(Literal["cpu", "cuda"], on),
        plan=plan or PlanSpec(**plan_fields),
        threads=threads or torch.get_num_threads(),
    )


def plan_for(weights: Mapping[str, int], available_bytes: int, device: str) -> PlanSpec:
    """Return the first way in which weights of these sizes leave room for the rest; for callers without a planner.

    The planner of the supervisor (policies/planning) knows activations too, and decides for every job.
    """
    if device == "cpu":
        return PlanSpec(offload="full")
    room = available_bytes * _SHARE_FOR_WEIGHTS
    if sum(weights.values()) <= room:
        return PlanSpec()
    tiling = Tiling()
    if max(weights.values(), default=0) <= room:
        return PlanSpec(offload="model", tiling=tiling)
    return PlanSpec(offload="group", group=GroupOffload(use_stream=True), tiling=tiling)


def precision_for(precision: Precision) -> Literal["float32", "bfloat16", "float16"]:
    """Return the type that "auto" means in this process; others are themselves."""
    if precision != "auto":
        if precision not in _TYPES:
            raise InvalidRequest(f"no precision {precision!r}", hint="use auto, float32, bfloat16 or float16")
        return precision
    if not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def _cast(part: torch.nn.Module, dtype: torch.dtype) -> None:
    in_float32 = frozenset(getattr(part, "_keep_in_fp32_modules", None) or ())
    if not hasattr(part, "load_config") and dtype != torch.float16:  # transformers' rule, see file_weights.py
        in_float32 = frozenset(getattr(part, "_keep_in_fp32_modules_strict", None) or ())
    for name, parameter in part.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if in_float32.intersection(name.split(".")) else dtype)


def _sizes(pipeline: Any) -> dict[str, int]:
    return {
        name: sum(tensor.numel() * tensor.element_size() for tensor in part.parameters())
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
    }


def _frames(given: Mapping[str, Any]) -> FrameSpec:
    return FrameSpec(
        height=given.get("height", 480), width=given.get("width", 832), num_frames=given.get("num_frames", 81)
    )


def _params(prompt: str, given: dict[str, Any]) -> GenerationParams:
    fields = {name: value for name, value in given.items() if name in GenerationParams.model_fields}
    unknown = given.keys() - fields.keys() - {"height", "width", "num_frames", "fps", "count_memory"}
    if unknown:
        raise InvalidRequest(f"no such parameter: {', '.join(sorted(unknown))}")
    defaults: dict[str, Any] = {"num_inference_steps": 50, "guidance_scale": 5.0}
    # Of the generator that nobody seeds for us: a seed that was drawn here is told in the result.
    defaults["seed"] = random.SystemRandom().randrange(1 << 31)
    return GenerationParams(**{**defaults, **fields, "prompt": prompt, "frames": _frames(given)})


def _pictures(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, list | tuple) else (given,)
