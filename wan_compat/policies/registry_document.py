"""The registry's document: one strict form for the copy in the package, the user's overlay and a signed update.

    {"schema_version": 1, "serial": 3, "diffusers_version": "0.42.1",
     "pipelines": {"WanPipeline": {...}},             what a pipeline class takes
     "models": {"Wan-AI/Wan2.1-T2V-14B-Diffusers": {...}}}

An overlay or update has only the fields that it changes; `policies/registry.py` puts it over the package's copy.
Sizes in `_mb` are megabytes of 1,000,000 bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wan_compat.protocol.errors import InvalidRequest, clean_text

MAX_DOCUMENT_BYTES = 4 << 20

_MAX_MODELS = 5000
_MAX_PIPELINES = 500

ModelName = Annotated[
    str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")
]
ClassName = Annotated[str, StringConstraints(max_length=120, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ModuleName = Annotated[str, StringConstraints(max_length=200, pattern=r"^diffusers(\.[a-z_][a-z0-9_]*)*$")]
VersionText = Annotated[str, StringConstraints(max_length=40, pattern=r"^[0-9]+(\.[0-9]+)*([a-z0-9.+]*)$")]
Word = Annotated[str, StringConstraints(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Text = Annotated[str, StringConstraints(max_length=600)]
Dependency = Annotated[str, StringConstraints(max_length=120)]
# The one place where a pipeline's source may lie: an address elsewhere would be an invitation to run foreign code.
SourceUrl = Annotated[
    str,
    StringConstraints(max_length=300, pattern=r"^https://github\.com/huggingface/diffusers/blob/[A-Za-z0-9./_-]+$"),
]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Megabytes = Annotated[int, Field(ge=0, le=100_000_000)]
Count = Annotated[int, Field(ge=0, le=1 << 50)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Defaults(_Strict):
    """What a model is run with when nothing else is asked for; None is not known. `flow_shift` is that of the
    repository's scheduler file."""

    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=100_000)] | None = None
    height: Annotated[int, Field(ge=16, le=16_384)] | None = None
    width: Annotated[int, Field(ge=16, le=16_384)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    guidance_scale_2: Annotated[float, Field(ge=0, le=100)] | None = None
    flow_shift: Annotated[float, Field(gt=0, le=100)] | None = None
    boundary_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    expand_timesteps: bool | None = None


class PlanMemory(_Strict):
    """What one plan takes at the default size, in bfloat16. `basis` says whether it was estimated or reported."""

    vram_mb: Megabytes | None = None
    ram_mb: Megabytes | None = None
    basis: Text = ""


class VramRequirements(_Strict):
    """`min_mb` holds for the plan named `plan`, `recommended_mb` for `recommended_plan`; None is not known."""

    min_mb: Megabytes | None = None
    plan: Word | None = None
    recommended_mb: Megabytes | None = None
    recommended_plan: Word | None = None


class Alternative(_Strict):
    """What to use instead of a model that no pipeline runs."""

    model: ModelName | None
    reason: Text


class RegistryEntry(_Strict):
    """One model. In an overlay only the fields that were set count.

    Args:
        min_diffusers_version: The first release that has the pipeline. Floors for security come on top.
        also_loads_as: Further pipelines that run the same files for other tasks.
        parameters: By component, counted.
        bytes: By component, as loaded: bfloat16, the VAE float32. Files on disk may be larger, see `notes`.
        memory_per_plan: `none`, `model`, `group`, `full`: offloading; `official`: as the authors say.
        revisions: Commits that were found in a local cache.
        required_args, optional_args: Registered by a program; without them the pipeline's own count.
    """

    pipeline_class: ClassName | None = None
    min_diffusers_version: VersionText | None = None
    required_dependencies: Annotated[tuple[Dependency, ...], Field(max_length=40)] = ()
    pipeline_source: SourceUrl | None = None
    vram_requirements: VramRequirements = VramRequirements()
    supported_optimizations: Annotated[tuple[Word, ...], Field(max_length=40)] = ()
    variant: Word | None = None
    also_loads_as: Annotated[tuple[ClassName, ...], Field(max_length=20)] = ()
    layout: Word | None = None
    licence: Text | None = None
    defaults: Defaults = Defaults()
    parameters: Annotated[dict[Word, Count], Field(max_length=20)] = {}
    bytes: Annotated[dict[Word, Count], Field(max_length=20)] = {}
    memory_per_plan: Annotated[dict[Word, PlanMemory], Field(max_length=20)] = {}
    alternative: Alternative | None = None
    notes: Annotated[tuple[Text, ...], Field(max_length=40)] = ()
    sources: Annotated[tuple[Text, ...], Field(max_length=40)] = ()
    revisions: Annotated[tuple[Revision, ...], Field(max_length=100)] = ()
    required_args: Annotated[tuple[ClassName, ...], Field(max_length=200)] | None = None
    optional_args: Annotated[tuple[ClassName, ...], Field(max_length=200)] | None = None


class PipelineEntry(_Strict):
    """What a pipeline class takes, as read from the source of `diffusers_version`.

    Args:
        one_of: Groups of arguments of which one must be given although the signature has a default for each.
        since: The release that brought an argument, for those that came later than the class.
        observed_in: The installed version in which this class was seen, where the package does not know it.
    """

    min_diffusers_version: VersionText | None = None
    module: ModuleName | None = None
    required_args: Annotated[tuple[ClassName, ...], Field(max_length=200)] = ()
    optional_args: Annotated[tuple[ClassName, ...], Field(max_length=200)] = ()
    accepts_more: bool = False
    one_of: Annotated[tuple[Annotated[tuple[ClassName, ...], Field(max_length=10)], ...], Field(max_length=20)] = ()
    since: Annotated[dict[ClassName, VersionText], Field(max_length=50)] = {}
    observed_in: VersionText | None = None


class RegistryDocument(_Strict):
    """`serial` counts the publications of a signed update: an older one is not taken again."""

    schema_version: Literal[1] = 1
    serial: Annotated[int, Field(ge=0, le=1 << 50)] = 0
    diffusers_version: VersionText | None = None
    pipelines: Annotated[dict[ClassName, PipelineEntry], Field(max_length=_MAX_PIPELINES)] = {}
    models: Annotated[dict[ModelName, RegistryEntry], Field(max_length=_MAX_MODELS)] = {}


def parse_document(raw: bytes, source: str) -> RegistryDocument:
    """Parse a registry, an overlay or an update; whole or not at all.

    Raises:
        InvalidRequest: Too large, no JSON, unknown keys, wrong types, values out of range; names `source` and place.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise InvalidRequest(f"{source} has {len(raw)} bytes; a registry has at most {MAX_DOCUMENT_BYTES}")
    try:
        return RegistryDocument.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise InvalidRequest(f"{source}: {clean_text(where, 200)}: {clean_text(first['msg'], 200)}") from error


def write_document(document: RegistryDocument) -> bytes:
    """Return the bytes that `parse_document` reads, with the fields that were set."""
    return document.model_dump_json(indent=1, exclude_unset=True, ensure_ascii=True).encode("ascii") + b"\n"
