"""From a PipelineSpec to a pipeline: every part by the class that the supervisor named, every tensor accounted for.

Nothing is guessed and nothing is fetched. The libraries' own `DiffusionPipeline.from_pretrained` would read class
names, code references and custom pipelines from the model's files; here the classes come from the spec, through the
lists below, and the files give configs and tensors only.

A tensor that is missing, left over or of another shape is an error. The libraries warn and go on with random
weights, which shows as noise an hour later.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from wan_compat.protocol.errors import ModelCorrupt, ModelNotCompatible
from wan_compat.protocol.messages import PartLoaded, Progress
from wan_compat.protocol.plan import PlanSpec
from wan_compat.protocol.values import ComponentSpec, PipelineSpec
from wan_compat.sandbox.spec import MODEL_TARGET
from wan_compat.workers import gpu
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.conv import send_conv3d_to_onednn
from wan_compat.workers.embeddings import Embeddings, keep_embeddings
from wan_compat.workers.failures import translate
from wan_compat.workers.finite import not_finite
from wan_compat.workers.optimizations import EXPERTS, IN_FILES, apply_plan, cast_layers, check_plan, stays_in_files
from wan_compat.workers.repository_code import load_own_class
from wan_compat.workers.residence import Residence
from wan_compat.workers.streaming import FrameExit

_NAMED_TENSORS = 5

PIPELINES = {
    "WanPipeline": "diffusers.pipelines.wan.pipeline_wan",
    "WanImageToVideoPipeline": "diffusers.pipelines.wan.pipeline_wan_i2v",
    "WanVACEPipeline": "diffusers.pipelines.wan.pipeline_wan_vace",
    "WanVideoToVideoPipeline": "diffusers.pipelines.wan.pipeline_wan_video2video",
    "WanAnimatePipeline": "diffusers.pipelines.wan.pipeline_wan_animate",
    "SkyReelsV2Pipeline": "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2",
    "SkyReelsV2ImageToVideoPipeline": "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_i2v",
    "SkyReelsV2DiffusionForcingPipeline": "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": (
        "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing_i2v"
    ),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": (
        "diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing_v2v"
    ),
    "ChronoEditPipeline": "diffusers.pipelines.chronoedit.pipeline_chronoedit",
    "LucyEditPipeline": "diffusers.pipelines.lucy.pipeline_lucy_edit",
    "AnyFlowPipeline": "diffusers.pipelines.anyflow.pipeline_anyflow",
    "AnyFlowFARPipeline": "diffusers.pipelines.anyflow.pipeline_anyflow_far",
    "HeliosPipeline": "diffusers.pipelines.helios.pipeline_helios",
    "HeliosPyramidPipeline": "diffusers.pipelines.helios.pipeline_helios_pyramid",
}

# Class -> module. Three ways to load: diffusers models, transformers models, and parts without tensors.
_DIFFUSERS_MODELS = {
    "AutoencoderKLWan": "diffusers.models.autoencoders.autoencoder_kl_wan",
    "WanTransformer3DModel": "diffusers.models.transformers.transformer_wan",
    "WanVACETransformer3DModel": "diffusers.models.transformers.transformer_wan_vace",
    "WanAnimateTransformer3DModel": "diffusers.models.transformers.transformer_wan_animate",
    "WanAnimate2Transformer3DModel": "diffusers.models.transformers.transformer_wan_animate_2",
    "SkyReelsV2Transformer3DModel": "diffusers.models.transformers.transformer_skyreels_v2",
    "ChronoEditTransformer3DModel": "diffusers.models.transformers.transformer_chronoedit",
    "AnyFlowTransformer3DModel": "diffusers.models.transformers.transformer_anyflow",
    "AnyFlowFARTransformer3DModel": "diffusers.models.transformers.transformer_anyflow_far",
    "HeliosTransformer3DModel": "diffusers.models.transformers.transformer_helios",
}
_TRANSFORMERS_MODELS = {
    "UMT5EncoderModel": "transformers",
    "T5EncoderModel": "transformers",
    "CLIPVisionModel": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
}
_WITHOUT_TENSORS = {
    "UniPCMultistepScheduler": "diffusers",
    "FlowMatchEulerDiscreteScheduler": "diffusers",
    "FlowMatchHeunDiscreteScheduler": "diffusers",
    "FlowMatchLCMScheduler": "diffusers",
    "DPMSolverMultistepScheduler": "diffusers",
    "EulerDiscreteScheduler": "diffusers",
    "ClassifierFreeGuidance": "diffusers",
    "ClassifierFreeZeroStarGuidance": "diffusers",
    "TangentialClassifierFreeGuidance": "diffusers",
    "AdaptiveProjectedGuidance": "diffusers",
    "FlowMapEulerDiscreteScheduler": "diffusers",
    "HeliosScheduler": "diffusers",
    "HeliosDMDScheduler": "diffusers",
    "T5Tokenizer": "transformers",
    "T5TokenizerFast": "transformers",
    "TokenizersBackend": "transformers",
    "PreTrainedTokenizerFast": "transformers",
    "CLIPImageProcessor": "transformers",
    "CLIPImageProcessorFast": "transformers",
    "CLIPImageProcessorPil": "transformers",
}

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A pipeline on its device, ready for any number of generations."""

    pipeline: Any
    spec: PipelineSpec
    frame_exit: FrameExit | None  # None: frames are taken from what the pipeline returns
    parameters: dict[str, int]
    call_arguments: frozenset[str]  # what this pipeline's __call__ takes
    load_s: float
    restricted: Callable[..., Any] | None = None  # the repository's function that calls the pipeline
    applied: tuple[str, ...] = ()  # of the plan, in words
    embeddings: Embeddings | None = None  # kept from job to job; None: the pipeline has no seam for it


def load_model(
    spec: PipelineSpec,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
    folder: str = MODEL_TARGET,
) -> LoadedModel:
    """Build the pipeline of `spec` from the admitted files.

    Args:
        spec: What to build; final.
        cancellation: Checked before each part; later, at every block of every model.
        report: Receives one Progress per loaded part.
        folder: The model's files, as the worker sees them.

    Raises:
        ModelCorrupt: Files are missing, malformed, or do not fit the classes.
        ModelNotCompatible: A class that this worker does not know or whose library is too old.
        MemoryExceeded, WorkerExtraMissing, ModelUnreadable: See failures.py.
        JobCancelled: A stop was requested.
    """
    started = time.perf_counter()
    check_plan(spec.plan, spec.device)
    if spec.device != "cpu":
        gpu.begin(spec.gpu, spec.gpu_memory_limit_bytes)
    is_ordinary = spec.code is None and spec.code_kind == "pipeline"
    pipeline_class = _class(spec.pipeline_class, PIPELINES) if is_ordinary else None
    components: dict[str, Any] = {}
    for done, component in enumerate(spec.components):
        cancellation.check()
        try:
            part = components[component.name] = _load_planned(component, spec, folder, cancellation)
            if component.name in EXPERTS and not any(lora.component == component.name for lora in spec.loras):
                cast_layers(component.name, part, spec.plan)  # now, before the next one takes its room
        except Exception as error:
            raise translate(error, loading=True, component=component.name) from error
        report(Progress(job=0, phase="load", step=done + 1, total=len(spec.components)))
    for lora in spec.loras:
        from wan_compat.workers.sources.lora import apply_lora

        apply_lora(components[lora.component], lora, folder, cancellation.check)
    cancellation.check()
    restricted = None
    if spec.restricted is not None:
        from wan_compat.workers.restricted.run import load_function

        restricted = load_function(spec.restricted, folder)
    if pipeline_class is None and spec.code is None:
        from wan_compat.workers.own_pipeline import build_modular_pipeline

        pipeline, call_arguments = build_modular_pipeline(spec, components)
    elif pipeline_class is None:
        from wan_compat.workers.own_pipeline import build_own_pipeline

        pipeline, call_arguments = build_own_pipeline(spec, components, folder)
    else:
        try:
            pipeline = pipeline_class(**components, **_settings(spec, pipeline_class, components))
        except TypeError as error:
            raise ModelCorrupt(f"the parts do not make a {spec.pipeline_class}: {error}") from error
        if spec.pipeline_class == "HeliosPyramidPipeline":
            from wan_compat.workers.helios_noise import mend_block_noise

            mend_block_noise(pipeline)
        from wan_compat.workers.own_pipeline import call_arguments_of

        call_arguments = call_arguments_of(pipeline_class)
        pipeline.set_progress_bar_config(disable=True)  # a bar redraws itself into the log a hundred times
    applied, embeddings = _apply(spec, pipeline, components, folder, cancellation)
    modules = {name: part for name, part in components.items() if isinstance(part, torch.nn.Module)}
    if spec.conv3d == "onednn" and spec.device == "cpu" and "vae" in modules:
        send_conv3d_to_onednn(modules["vae"])
    for module in modules.values():
        module.eval()
        _check_at_every_block(module, cancellation)
    return LoadedModel(
        pipeline=pipeline,
        spec=spec,
        # What a pipeline of the repository does after decoding, only it knows: its frames are those that it returns.
        frame_exit=None
        if pipeline_class is None or spec.frames == "pipeline"
        else FrameExit(pipeline.vae, spec.streaming),
        parameters={name: sum(tensor.numel() for tensor in part.parameters()) for name, part in modules.items()},
        call_arguments=call_arguments,
        load_s=time.perf_counter() - started,
        restricted=restricted,
        applied=applied,
        embeddings=embeddings,
    )


def load_part(spec: PipelineSpec, name: str, cancellation: Cancellation, folder: str = MODEL_TARGET) -> PartLoaded:
    """Load one component of `spec` by itself, look whether its weights are numbers, and give it up again.

    Raises:
        ModelCorrupt, ModelNotCompatible, MemoryExceeded, ...: As `load_model`, for this part.
    """
    started = time.perf_counter()
    component = next((item for item in spec.components if item.name == name), None)
    if component is None:
        raise ModelNotCompatible(f"the pipeline has no part {name!r}")
    cancellation.check()
    try:
        part = _load_component(component, folder, cancellation)
    except Exception as error:
        raise translate(error, loading=True, component=name) from error
    tensors = [*part.parameters()] if isinstance(part, torch.nn.Module) else []
    return PartLoaded(
        component=name,
        parameters=sum(tensor.numel() for tensor in tensors),
        tensor_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        not_finite=not_finite(part) if isinstance(part, torch.nn.Module) else (),
        load_s=time.perf_counter() - started,
    )


def _apply(
    spec: PipelineSpec, pipeline: Any, components: dict[str, Any], folder: str, cancellation: Cancellation
) -> tuple[tuple[str, ...], Embeddings | None]:
    """Carry the plan out. A pipeline of the repository's own is put on its device, and nothing else is done to it."""
    if spec.code is not None:
        if spec.plan != PlanSpec():
            raise ModelNotCompatible(f"{spec.pipeline_class} is run as it is, without a plan")
        if spec.device != "cpu":
            pipeline.to(spec.device)
        return (), None
    applied = apply_plan(pipeline, spec.plan, spec.device)
    if spec.plan.text_encoder == "stay" or stays_in_files(spec.plan):
        return applied, keep_embeddings(pipeline)
    source = next(component for component in spec.components if component.name == "text_encoder")

    def load() -> torch.nn.Module:
        encoder: torch.nn.Module = _load_component(source, folder, cancellation)
        return encoder.to(spec.device)

    encoder = Residence(components["text_encoder"], load)
    if spec.code_kind == "blocks":
        # No function of theirs is called for each prompt; what comes after all prompts is denoising.
        for name in EXPERTS:
            if name in components:
                components[name].register_forward_pre_hook(lambda *_: encoder.leave())
        return (*applied, "text_encoder:leaves"), None
    embeddings = keep_embeddings(pipeline, encoder)
    if embeddings is None:
        raise ModelNotCompatible(f"the text encoder of a {spec.pipeline_class} cannot leave memory")
    return (*applied, "text_encoder:leaves"), embeddings


def _load_planned(component: ComponentSpec, spec: PipelineSpec, folder: str, cancellation: Cancellation) -> Any:
    """Load a component, or lay it out over its files where the plan says so and they are in its library's layout."""
    if not stays_in_files(spec.plan) or component.name not in IN_FILES:
        return _load_component(component, folder, cancellation)
    if component.source is not None or component.quantization is not None or component.code is not None:
        raise ModelNotCompatible(
            f"{component.name} cannot stay in its files, because it is made from them by another rule than copying",
            hint="convert the model first (wan-compat convert), or use another plan",
        )
    if any(lora.component == component.name for lora in spec.loras):
        raise ModelNotCompatible(
            f"{component.name} cannot stay in its files and have a LoRA laid over it", hint="use another plan"
        )
    from wan_compat.workers.file_weights import lay_out

    known = _DIFFUSERS_MODELS if component.library == "diffusers" else _TRANSFORMERS_MODELS
    path = os.path.join(folder, component.subfolder)
    model, info = lay_out(_class(component.class_name, known), path, _dtype(component), spec.device)
    _check_tensors(component, info)
    return model


def _load_component(component: ComponentSpec, folder: str, cancellation: Cancellation) -> Any:
    name = component.class_name
    if component.source is not None:
        return _from_source(component, folder, cancellation)
    path = os.path.join(folder, component.subfolder)
    if not os.path.isdir(path):
        raise ModelCorrupt(f"the folder {component.subfolder!r} is missing")
    own = load_own_class(component, folder) if component.code is not None else None
    if own is not None and component.dtype is None:
        return own.from_pretrained(path, local_files_only=True)
    if component.library == "diffusers" and (own or name in _DIFFUSERS_MODELS):
        model, info = (own or _class(name, _DIFFUSERS_MODELS)).from_pretrained(
            path,
            torch_dtype=_dtype(component),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **_quantized(component, path),
        )
    elif component.library == "transformers" and (own or name in _TRANSFORMERS_MODELS):
        model, info = (own or _class(name, _TRANSFORMERS_MODELS)).from_pretrained(
            path,
            dtype=_dtype(component),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # Else a mismatch raises "see the report above"; so it is listed, and refused below with names.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_quantized(component, path),
        )
        _check_embeddings(model)
    else:
        return _class(name, _WITHOUT_TENSORS, component.library).from_pretrained(path, local_files_only=True)
    _check_tensors(component, info)
    return model


def _from_source(component: ComponentSpec, folder: str, cancellation: Cancellation) -> Any:
    """Build a part from files that are not in its library's layout (policies/sources decided which, and how)."""
    from wan_compat.workers.sources.models import build_model
    from wan_compat.workers.sources.weights import read_tensors

    assert component.source is not None
    known = _DIFFUSERS_MODELS if component.library == "diffusers" else _TRANSFORMERS_MODELS
    dtype = _dtype(component)
    tensors = read_tensors(component.source, folder, dtype, cancellation.check)
    built = build_model(component, _class(component.class_name, known), tensors, dtype)
    if component.library == "transformers":
        _check_embeddings(built.model)
    _check_tensors(component, built.info)
    return built.model


def _quantized(component: ComponentSpec, path: str) -> dict[str, Any]:
    """Return what `from_pretrained` takes besides, where fewer bits were asked for by name."""
    from wan_compat.workers.sources.quantize import prepare, quantization_config

    if component.quantization is None:
        prepare(path)
        return {}
    return {"quantization_config": quantization_config(component.quantization, component.library, _dtype(component))}


def _class(name: str, known: dict[str, str], library: str | None = None) -> Any:
    module = known.get(name)
    if module is None or (library is not None and module != library):
        raise ModelNotCompatible(f"this worker does not know the class {name!r}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ModelNotCompatible(
            f"the installed {module.partition('.')[0]} has no {name}", hint="pip install -U 'wan-compat[worker]'"
        ) from error


def _dtype(component: ComponentSpec) -> torch.dtype:
    if component.dtype is None:
        raise ModelNotCompatible(f"{component.name} has tensors, but its spec names no dtype")
    return _DTYPES[component.dtype]


def _check_tensors(component: ComponentSpec, info: dict[str, Any]) -> None:
    """Refuse anything but a perfect fit. `info` is the loading info of either library."""
    problems = []
    for key, words in (
        ("missing_keys", "the files lack"),
        ("unexpected_keys", "the config has no place for"),
        ("mismatched_keys", "of another shape than the config says:"),
    ):
        # A mismatch is a tuple of the name and both shapes.
        names = sorted(str(item[0]) if isinstance(item, tuple | list) else str(item) for item in info.get(key) or ())
        if names:
            problems.append(f"{words} {_some(names)}")
    for text in info.get("error_msgs") or ():
        problems.append(str(text))
    if problems:
        raise ModelCorrupt(
            f"{component.name}: weights and config of {component.class_name} do not fit: {'; '.join(problems)}",
            hint="check that config.json and the weights come from the same repository",
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _NAMED_TENSORS} more" if len(names) > _NAMED_TENSORS else ""
    return ", ".join(names[:_NAMED_TENSORS]) + rest


def _check_embeddings(model: Any) -> None:
    """Refuse a text encoder whose token embeddings were left random.

    T5 files name their one embedding `shared.weight`, `encoder.embed_tokens.weight`, or both. The library drops the
    absent one from its list of missing tensors because it means to tie them; check that it did.
    """
    shared = getattr(model, "shared", None)
    if shared is None:
        return
    embedded = model.encoder.embed_tokens.weight
    if embedded.data_ptr() != shared.weight.data_ptr() and not torch.equal(embedded, shared.weight):
        raise ModelCorrupt("shared.weight and encoder.embed_tokens.weight differ; one of them was not in the file")


def _settings(spec: PipelineSpec, pipeline_class: Any, components: dict[str, Any]) -> dict[str, Any]:
    """Return the pipeline's own settings, and None for the optional parts that this model does not have."""
    accepted = inspect.signature(pipeline_class.__init__).parameters
    settings: dict[str, Any] = {"boundary_ratio": spec.boundary_ratio, **spec.settings}
    if spec.expand_timesteps:
        settings["expand_timesteps"] = True
    for name in settings:
        if name not in accepted and settings[name] is not None:
            raise ModelNotCompatible(f"{spec.pipeline_class} takes no {name}", hint="pip install -U diffusers")
    settings = {name: value for name, value in settings.items() if name in accepted}
    for name in ("transformer", "transformer_2", "image_encoder", "image_processor"):
        if name in accepted and name not in components:
            settings[name] = None
    return settings


def _check_at_every_block(model: torch.nn.Module, cancellation: Cancellation) -> None:
    """Look for a requested stop before each block: a step of a 14B model on CPU takes minutes."""

    def check(*_: Any) -> None:
        cancellation.check()

    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for block in module:
                block.register_forward_pre_hook(check)
