"""A pipeline that is the repository's own, or of modular blocks, with the components that we loaded.

Components are handed over ready. A modular pipeline's own `load_components` would fetch them from wherever its index
says, and `from_pretrained` would look for further code.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from wan_compat.protocol.errors import ModelNotCompatible
from wan_compat.protocol.values import PipelineSpec
from wan_compat.workers.failures import translate
from wan_compat.workers.repository_code import load_class

# Of diffusers, by the names of their classes; each knows its blocks.
MODULAR_PIPELINES = frozenset(
    {
        "WanModularPipeline",
        "Wan22ModularPipeline",
        "WanImage2VideoModularPipeline",
        "Wan22Image2VideoModularPipeline",
        "Wan22VaceModularPipeline",
        "HeliosModularPipeline",
        "HeliosPyramidModularPipeline",
        "HeliosPyramidDistilledModularPipeline",
        "WanAnimate2ModularPipeline",
        "WanAnimate2DistilledModularPipeline",
    }
)
ANYTHING = "**"  # among the arguments of a call: whatever is given


def build_own_pipeline(spec: PipelineSpec, components: Mapping[str, Any], folder: str) -> tuple[Any, frozenset[str]]:
    """Build the pipeline of `spec.code`.

    Returns:
        The pipeline, and the names of what it can be called with.

    Raises:
        ModelNotCompatible: The class is no pipeline, or wants components that the repository does not have.
        Others: As the code itself fails, translated.
    """
    assert spec.code is not None
    try:
        found = load_class(spec.code, folder)
        make = _from_blocks if spec.code_kind == "blocks" else _from_class
        pipeline, call_arguments = make(found, spec, components)
    except Exception as error:
        raise translate(error, loading=True, component=spec.code.module) from error
    if callable(hush := getattr(pipeline, "set_progress_bar_config", None)):
        hush(disable=True)
    return pipeline, call_arguments


def _from_class(found: type[Any], spec: PipelineSpec, components: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    if not any("__call__" in vars(base) for base in found.__mro__):
        raise ModelNotCompatible(f"{spec.pipeline_class} cannot be called: it is no pipeline")
    accepted = inspect.signature(found.__init__).parameters
    given: dict[str, Any] = {name: value for name, value in spec.settings.items() if name in accepted}
    # As diffusers: an optional component that the index does not name is None.
    given |= dict.fromkeys(name for name in getattr(found, "_optional_components", ()) if name in accepted)
    given |= components
    required = [
        name
        for name, parameter in accepted.items()
        if name != "self" and parameter.default is parameter.empty and parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ]
    _complain(spec, [name for name in required if name not in given])
    return found(**given), call_arguments_of(found)


def _from_blocks(found: type[Any], spec: PipelineSpec, components: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    import diffusers

    if not issubclass(found, diffusers.ModularPipelineBlocks):
        raise ModelNotCompatible(f"{spec.pipeline_class} is no diffusers.ModularPipelineBlocks")
    pipeline = found().init_pipeline()  # type: ignore[attr-defined]
    expected = {item.name: item for item in pipeline.blocks.expected_components}
    settings = {item.name for item in pipeline.blocks.expected_configs}
    pipeline.update_components(
        **{name: part for name, part in components.items() if name in expected},
        **{name: value for name, value in spec.settings.items() if name in settings},
    )
    _complain(spec, [name for name in expected if getattr(pipeline, name, None) is None])
    return pipeline, frozenset(item.name for item in pipeline.blocks.inputs if item.name is not None)


def build_modular_pipeline(spec: PipelineSpec, components: Mapping[str, Any]) -> tuple[Any, frozenset[str]]:
    """Build a pipeline of diffusers' own modular blocks, which are those of its class.

    Raises:
        ModelNotCompatible: diffusers has no such class, or it wants components that were not loaded.
    """
    import diffusers

    found = getattr(diffusers, spec.pipeline_class, None) if spec.pipeline_class in MODULAR_PIPELINES else None
    if found is None:
        raise ModelNotCompatible(
            f"the installed diffusers has no {spec.pipeline_class}", hint="pip install -U 'wan-compat[worker]'"
        )
    if spec.pipeline_class.startswith("WanAnimate2"):
        from wan_compat.workers.animate2_mask import make_masks_eagerly

        make_masks_eagerly()
    if spec.pipeline_class.startswith("HeliosPyramid"):
        from wan_compat.workers.helios_noise import mend_noise_of_blocks

        mend_noise_of_blocks()
    if spec.pipeline_class == "WanImage2VideoModularPipeline":
        from wan_compat.workers.last_frame_crop import crop_last_frames_here

        crop_last_frames_here()
    pipeline = found()
    pipeline.update_components(**components, **spec.settings)
    expected = [item.name for item in pipeline.blocks.expected_components]
    _complain(spec, [name for name in expected if getattr(pipeline, name, None) is None])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, frozenset(item.name for item in pipeline.blocks.inputs if item.name is not None)


def guide(pipeline: Any, guidance_scale: float, guidance_scale_2: float | None) -> None:
    """Give the guiders of modular blocks the scales of a job; elsewhere they are arguments of the call."""
    for name, scale in (("guider", guidance_scale), ("guider_2", guidance_scale_2)):
        guider = getattr(pipeline, name, None)
        if guider is not None:
            # As in WanPipeline, the second expert follows the first.
            pipeline.update_components(**{name: guider.new(guidance_scale=guidance_scale if scale is None else scale)})


def _complain(spec: PipelineSpec, missing: list[str]) -> None:
    if missing:
        raise ModelNotCompatible(
            f"{spec.pipeline_class} wants {', '.join(missing)}, which the repository does not have",
            hint="use a repository that holds every component of its pipeline",
        )


def call_arguments_of(found: type[Any]) -> frozenset[str]:
    """Return the names that a pipeline's `__call__` takes, `ANYTHING` among them if it takes whatever it is given."""
    parameters = inspect.signature(found.__call__).parameters
    anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    return frozenset(parameters) | ({ANYTHING} if anything else frozenset())


def wanted_arguments(pipeline: Any) -> tuple[str, ...]:
    """Return the names without which a pipeline cannot be called."""
    blocks = getattr(pipeline, "blocks", None)
    if blocks is not None:
        return tuple(item.name for item in blocks.inputs if item.name is not None and item.required)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(type(pipeline).__call__).parameters.values())[1:]
    return tuple(item.name for item in parameters if item.default is item.empty and item.kind in named)
