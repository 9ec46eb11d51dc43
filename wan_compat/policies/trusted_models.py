"""From facts and an approval to a pipeline that may be, or contain, code of the repository: the decision of trust mode.

Which code that is, repository_code.py tells. Weights and configurations are admitted by the names of safe mode; the
code is every approved Python file, and no file is admitted but the one that was hashed. What another repository brings,
pickled weights, kernels, and settings that switch trust on for themselves are refused here as well: an approval is
about the files that were approved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan_compat.policies.admission import admit_component
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.judgement.shards import judge_shards
from wan_compat.policies.model_fit import EXPERTS, boundary_of, check_fit, main_expert, weights_of
from wan_compat.policies.models import ModelDecision, choose_dtype, raise_first
from wan_compat.policies.pipelines import PIPELINES, Way, ways_of, ways_through
from wan_compat.policies.repository_code import (
    IMPORTABLE,
    NAME,
    Part,
    components_of,
    pipeline_code,
    refuse_what_no_mode_runs,
    ruling_index,
)
from wan_compat.policies.tasks import Wish, choose_way
from wan_compat.policies.trust import TrustDecision
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid, ModelNotCompatible, TrustRefused
from wan_compat.protocol.values import CodeSpec, ComponentSpec, PipelineSpec

# Each is one more mount in the worker's view.
MAX_CODE_FILES = 200
MAX_COMPONENTS = 16
MAX_SETTINGS = 32
MAX_SETTING_CHARS = 200

_REQUIRED = ("tokenizer", "text_encoder", "vae", "scheduler")
_PARTS_THAT_MUST_FIT = (*EXPERTS, "vae")


def decide_trusted_model(
    facts: ModelFacts, trust: TrustDecision, *, threads: int, memory_limit_bytes: int, wish: Wish | None = None
) -> ModelDecision:
    """Decide how a model is loaded whose repository was approved as `trust` says.

    Raises:
        TrustRefused: Nothing was approved.
        RemoteCodeRefused, PickleRefused: It asks for code that no approval can cover.
        ModelInvalid: A file is not the one that was hashed.
        ModelIndexMissing, ModelCorrupt, ModelNotCompatible, MemoryExceeded: As in safe mode.
    """
    if not trust.runs_code:
        raise TrustRefused(f"{facts.root}: {trust.reason}")
    approved = {fact.path: fact for fact in trust.tree.facts}
    refuse_what_no_mode_runs(facts)
    code, code_kind = pipeline_code(facts, approved)
    index_path, index = ruling_index(facts, code_kind if code else None)
    parts = tuple(components_of(facts, approved, index_path, index))
    _check_parts(facts, index_path, parts, has_own_pipeline=code is not None)
    way, boundary = (None, None) if code is not None else _library_way(facts, parts, wish)
    dtype, weight_bytes, reasons = choose_dtype(
        facts, [part.folder for part in parts if part.has_weights], memory_limit_bytes
    )
    own_vae = any(part.name == "vae" and part.code is not None for part in parts)
    pipeline = PipelineSpec(
        pipeline_class=_pipeline_name(code, way),
        code=code,
        code_kind=code_kind,
        settings=_settings(index) if code is not None else {},
        components=tuple(
            ComponentSpec(
                name=part.name,
                library=part.library,
                class_name=part.class_name,
                subfolder=part.folder,
                dtype=dtype if part.has_weights else None,
                code=part.code,
            )
            for part in parts
            if way is None or part.name in PIPELINES[way.pipeline].slots
        ),
        boundary_ratio=boundary,
        expand_timesteps=way is not None
        and "expand_timesteps" in PIPELINES[way.pipeline].settings
        and index.get("expand_timesteps") is True,
        threads=threads,
        # Frames are taken below `vae.decode` only where both that method and what follows it are diffusers' own.
        streaming="never" if code is not None or own_vae else "auto",
    )
    return ModelDecision(
        pipeline=pipeline,
        admitted=_admit(facts, approved, index_path, parts, needs_code=_needs_code(pipeline)),
        transformer_config=_with_sound_patch(facts.configs.get("transformer", {})),
        vae_config=_with_sound_factors(facts.configs.get("vae", {})),
        weight_bytes=weight_bytes,
        reasons=(*reasons, trust.reason),
        way=way,
        trust=trust,
        repository=facts.repository,
        revision=facts.revision,
    )


# -- whether it fits -------------------------------------------------------------------------------------------------


def _check_parts(facts: ModelFacts, index_path: str, parts: tuple[Part, ...], *, has_own_pipeline: bool) -> None:
    names = {part.name for part in parts}
    missing = [] if has_own_pipeline else [name for name in _REQUIRED if name not in names]
    if not has_own_pipeline and not names & set(EXPERTS):
        missing.append("transformer")
    if missing or not parts:
        raise ModelCorrupt(
            f"{index_path} of {facts.root} names no {', '.join(missing) or 'components'}",
            hint="download the repository again, all of it",
        )
    if len(parts) > MAX_COMPONENTS:
        raise ModelNotCompatible(
            f"{index_path} of {facts.root} names {len(parts)} components, at most {MAX_COMPONENTS}"
        )
    folders = {part.folder for part in parts}
    raise_first(facts, (item for item in judge_shards(facts, folders) if item.component is not None))


def _library_way(facts: ModelFacts, parts: tuple[Part, ...], wish: Wish | None) -> tuple[Way, float | None]:
    """Return what a pipeline of diffusers does here, and the boundary between two experts.

    Parts of diffusers' classes must fit, and tell what the weights are; what own ones take, they know: then the class
    that the index names decides.
    """
    named = str(facts.index.get("_class_name"))
    known = {part.name: part.class_name for part in parts if part.code is None}
    if not all(part.name in known for part in parts if part.name in _PARTS_THAT_MUST_FIT):
        way = choose_way(ways_through(named), wish, facts.root)
        return way, boundary_of(facts, {part.name for part in parts})
    transformer = facts.configs.get(main_expert(known) or "transformer", {})
    vae = facts.configs.get("vae", {})
    weights = weights_of(facts, known, transformer, vae, named)
    way = choose_way(ways_of(weights), wish, facts.root)
    return way, check_fit(facts, known, transformer, vae, weights)


def _pipeline_name(code: CodeSpec | None, way: Way | None) -> str:
    if code is not None:
        return code.class_name
    assert way is not None  # one of the two is there
    return way.pipeline


def _settings(index: Mapping[str, Any]) -> dict[str, bool | int | float | str | None]:
    """Return the plain values of an index: what diffusers would pass to a pipeline beside its components."""
    found: dict[str, bool | int | float | str | None] = {}
    for name, value in index.items():
        plain = value is None or isinstance(value, bool | float)
        plain = plain or (isinstance(value, int) and abs(value) <= 2**53)
        plain = plain or (isinstance(value, str) and len(value) <= MAX_SETTING_CHARS)
        if plain and not name.startswith("_") and NAME.fullmatch(name) and len(found) < MAX_SETTINGS:
            found[name] = value
    return found


def _with_sound_patch(config: Mapping[str, Any]) -> Mapping[str, Any]:
    patch = config.get("patch_size")
    sound = isinstance(patch, list) and len(patch) == 3 and all(type(side) is int and 1 <= side <= 16 for side in patch)
    return {**config, "patch_size": patch if sound else [1, 2, 2]}


def _with_sound_factors(config: Mapping[str, Any]) -> Mapping[str, Any]:
    factors = {"scale_factor_spatial": 8, "scale_factor_temporal": 4}
    for name in factors:
        if type(given := config.get(name)) is int and 1 <= given <= 64:
            factors[name] = given
    return {**config, **factors}


# -- what the worker sees --------------------------------------------------------------------------------------------


def _needs_code(pipeline: PipelineSpec) -> bool:
    return pipeline.code is not None or any(component.code is not None for component in pipeline.components)


def _admit(
    facts: ModelFacts,
    approved: Mapping[str, FileFact],
    index_path: str,
    parts: tuple[Part, ...],
    *,
    needs_code: bool,
) -> tuple[FileFact, ...]:
    """Return the hashed files themselves: one that was replaced after it was hashed is refused here, or by the view."""
    wanted = [facts.files[index_path]]
    for part in parts:
        wanted += admit_component(facts, part.folder, part.kind)
    admitted: dict[str, FileFact] = {}
    for fact in wanted:
        hashed = approved.get(fact.path)
        if hashed is None or _identity(hashed) != _identity(fact):
            raise ModelInvalid(
                f"{fact.path} of {facts.root} is not the file that was hashed",
                hint="try again when nothing writes to it",
            )
        admitted[fact.path] = hashed
    if needs_code:
        code = {path: fact for path, fact in approved.items() if IMPORTABLE.fullmatch(path)}
        if len(code) > MAX_CODE_FILES:
            raise ModelNotCompatible(
                f"{facts.root} has {len(code)} Python files, at most {MAX_CODE_FILES} can be shown"
            )
        admitted |= code
    return tuple(admitted[path] for path in sorted(admitted))


def _identity(fact: FileFact) -> tuple[int, int, int, int]:
    return fact.device, fact.inode, fact.size, fact.mtime_ns
