"""From facts and an approval to a pipeline that may be, or contain, code of the repository: the decision of trust mode.

Where a repository says that a class is its own, and in which approved file that class then must lie:

    model_index.json     "_class_name": ["my_pipeline", "MyPipeline"]          my_pipeline.py
                         "_class_name": "MyPipeline", none that runs here      pipeline.py
                         "transformer": ["my_module", "MyTransformer"]         transformer/my_module.py
    COMPONENT/*.json     "auto_map": {"AutoModel": "my_module.MyModel"}        COMPONENT/my_module.py
    modular_config.json  "auto_map": {"ModularPipelineBlocks": "block.My"}     block.py

These are the places where diffusers 0.42 and transformers 5 look. Weights and configurations are admitted by the names
of safe mode; the code is every approved Python file, and no file is admitted but the one that was hashed. What another
repository brings, pickled weights, kernels, and settings that switch trust on for themselves are refused here as well:
an approval is about the files that were approved.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn

from wan_compat.policies.admission import Kind, admit_component
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.judgement.parts import elsewhere_of, repository_named
from wan_compat.policies.judgement.shards import judge_shards
from wan_compat.policies.model_index import LIBRARIES, is_absent, is_component_entry, reference
from wan_compat.policies.models import (
    ADMITTED_CLASSES,
    REQUIRED,
    TEXT_TO_VIDEO,
    ModelDecision,
    check_fit,
    choose_dtype,
    kind_of,
    raise_first,
)
from wan_compat.policies.trust import TrustDecision
from wan_compat.protocol.errors import (
    ModelCorrupt,
    ModelIndexMissing,
    ModelInvalid,
    ModelNotCompatible,
    RemoteCodeRefused,
    TrustRefused,
)
from wan_compat.protocol.values import CodeSpec, ComponentSpec, PipelineSpec

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
MODULAR_CONFIG = "modular_config.json"
LONE_PIPELINE = "pipeline.py"

# Each is one more mount in the worker's view.
MAX_CODE_FILES = 200
MAX_COMPONENTS = 16
MAX_SETTINGS = 32
MAX_SETTING_CHARS = 200

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_IMPORTABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,63}/){0,4}[A-Za-z_][A-Za-z0-9_]{0,63}\.py")
_KINDS: Mapping[tuple[str, str], Kind] = {
    (library, class_name): kind_of(name)
    for name, (library, class_names) in ADMITTED_CLASSES.items()
    for class_name in class_names
}
_PARTS_THAT_MUST_FIT = ("transformer", "transformer_2", "vae")


@dataclasses.dataclass(frozen=True)
class _Part:
    """One component: its folder, its class, by whose rules it is loaded, and the approved code it comes from."""

    name: str
    folder: str
    class_name: str
    kind: Kind
    code: CodeSpec | None = None

    @property
    def library(self) -> Literal["diffusers", "transformers"]:
        return _library_of(self.kind)

    @property
    def has_weights(self) -> bool:
        return self.kind in ("diffusers", "transformers")


def decide_trusted_model(
    facts: ModelFacts, trust: TrustDecision, *, threads: int, memory_limit_bytes: int
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
    _refuse_what_no_mode_runs(facts)
    code, code_kind = _pipeline_code(facts, approved)
    index_path, index = _index(facts, code_kind if code else None)
    parts = tuple(_parts(facts, approved, index_path, index))
    _check_parts(facts, index_path, parts, has_own_pipeline=code is not None)
    boundary = None if code is not None else _boundary(facts, parts)
    dtype, weight_bytes, reasons = choose_dtype(
        facts, [part.folder for part in parts if part.has_weights], memory_limit_bytes
    )
    own_vae = any(part.name == "vae" and part.code is not None for part in parts)
    pipeline = PipelineSpec(
        pipeline_class=code.class_name if code is not None else TEXT_TO_VIDEO,
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
        ),
        boundary_ratio=boundary,
        expand_timesteps=code is None and index.get("expand_timesteps") is True,
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
        trust=trust,
        repository=facts.repository,
        revision=facts.revision,
    )


# -- what stays refused ----------------------------------------------------------------------------------------------


def _refuse_what_no_mode_runs(facts: ModelFacts) -> None:
    for path, document in facts.documents.items():
        for named in _references(document.get("auto_map")):
            if "--" in named or "/" in named:
                _refuse(facts, path, f"takes code from another repository: auto_map names {named!r}")
    documents = dict(facts.documents)
    if isinstance(facts.index.get("_class_name"), list):
        documents[INDEX] = {**facts.index, "_class_name": ""}  # judged by _pipeline_code
    found = judge_documents(dataclasses.replace(facts, documents=documents))
    raise_first(facts, (item for item in found if item.code != "remote_code_auto_map"))


def _references(auto_map: Any) -> Iterator[str]:
    values = auto_map.values() if isinstance(auto_map, Mapping) else ()
    for value in values:
        yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def _refuse(facts: ModelFacts, path: str, what: str) -> NoReturn:
    raise RemoteCodeRefused(
        f"{path} of {facts.root} {what}",
        hint="an approval covers the files of one repository; what they name must be among them",
    )


# -- which code ------------------------------------------------------------------------------------------------------


def _pipeline_code(
    facts: ModelFacts, approved: Mapping[str, FileFact]
) -> tuple[CodeSpec | None, Literal["pipeline", "blocks"]]:
    """Return the repository's own pipeline or blocks; None where diffusers' pipeline is what it names."""
    auto_map = facts.documents.get(MODULAR_CONFIG, {}).get("auto_map")
    blocks = auto_map.get("ModularPipelineBlocks") if isinstance(auto_map, Mapping) else None
    if blocks is not None:
        return _named_code(facts, approved, MODULAR_CONFIG, "", blocks), "blocks"
    if INDEX not in facts.documents:
        raise ModelIndexMissing(
            f"{facts.root} has no model_index.json, and no modular_config.json that names its blocks",
            hint="give the top folder of a repository in diffusers layout",
        )
    named = facts.index.get("_class_name")
    if isinstance(named, list):
        if len(named) != 2 or not all(isinstance(item, str) for item in named):
            _refuse(facts, INDEX, f"names a pipeline as {named!r}, which is not a module and a class")
        return _code(facts, approved, INDEX, "", named[0], named[1]), "pipeline"
    if named == TEXT_TO_VIDEO:
        return None, "pipeline"
    if isinstance(named, str) and LONE_PIPELINE in approved:
        return _code(facts, approved, INDEX, "", LONE_PIPELINE.removesuffix(".py"), named), "pipeline"
    raise ModelNotCompatible(
        f"{facts.root} is a {named}; text to video with {TEXT_TO_VIDEO}, or with a pipeline that lies in the "
        "repository, is what can be run here"
    )


def _named_code(
    facts: ModelFacts, approved: Mapping[str, FileFact], document: str, folder: str, named: Any
) -> CodeSpec:
    module, dot, class_name = named.partition(".") if isinstance(named, str) else ("", "", "")
    if not dot:
        _refuse(facts, document, f"names code as {named!r}, which is not a module and a class")
    return _code(facts, approved, document, folder, module, class_name)


def _code(
    facts: ModelFacts, approved: Mapping[str, FileFact], document: str, folder: str, module: str, class_name: str
) -> CodeSpec:
    path = f"{folder}/{module}.py" if folder else f"{module}.py"
    if not _NAME.fullmatch(module) or not _NAME.fullmatch(class_name) or not _IMPORTABLE.fullmatch(path):
        _refuse(facts, document, f"names code as {module!r}, {class_name!r}, which are not a module and a class")
    if path not in approved:
        _refuse(facts, document, f"names the class {class_name!r} of {path}, which is not among the approved files")
    return CodeSpec(module=path, class_name=class_name)


# -- which parts -----------------------------------------------------------------------------------------------------


def _index(facts: ModelFacts, code_kind: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return the index that names the parts. Blocks take the modular one first, as diffusers does."""
    for path in (MODULAR_INDEX, INDEX) if code_kind == "blocks" else (INDEX,):
        if path in facts.documents:
            return path, facts.documents[path]
    raise ModelIndexMissing(
        f"{facts.root} has neither {MODULAR_INDEX} nor {INDEX}: nothing says where the parts of its blocks lie",
        hint="use a repository that holds its components too",
    )


def _parts(
    facts: ModelFacts, approved: Mapping[str, FileFact], index_path: str, index: Mapping[str, Any]
) -> Iterator[_Part]:
    for name, entry in sorted(index.items()):
        if name.startswith("_") or not is_component_entry(entry) or is_absent(entry):
            continue
        if not _NAME.fullmatch(name):
            raise ModelCorrupt(f"{index_path} of {facts.root} has a component {name!r}, which is no name")
        if elsewhere := elsewhere_of(entry, facts):
            _refuse(facts, index_path, f"takes {name} from another repository, {repository_named(elsewhere)!r}")
        folder = reference(entry).get("subfolder", name)
        if not isinstance(folder, str) or not _NAME.fullmatch(folder):
            raise ModelCorrupt(f"{index_path} of {facts.root} puts {name} into {folder!r}, which is no folder of it")
        yield _part(facts, approved, index_path, name, folder, entry[0], entry[1])


def _part(
    facts: ModelFacts,
    approved: Mapping[str, FileFact],
    index_path: str,
    name: str,
    folder: str,
    library: str | None,
    class_name: str | None,
) -> _Part:
    document, config = _config(facts, folder)
    kind = _kind(document, config)
    if library is None or class_name is None:  # a modular index may leave both to the component
        library, class_name = (
            ("diffusers" if kind in ("diffusers", "scheduler") else "transformers"),
            _own_class(config),
        )
    if library not in LIBRARIES:
        code = _code(facts, approved, index_path, folder, library, class_name)
        return _Part(name, folder, class_name, kind, code)
    if (library, class_name) in _KINDS:
        return _Part(name, folder, class_name, _KINDS[library, class_name])
    named = _auto_mapped(config, class_name)
    if named is None:
        raise ModelNotCompatible(
            f"component {name!r} of {facts.root} is {library}.{class_name}, which is none of the classes known here, "
            f"and {document} names no code for it"
        )
    code = _named_code(facts, approved, document, folder, named)
    return _Part(name, folder, code.class_name, kind, code)


def _config(facts: ModelFacts, folder: str) -> tuple[str, Mapping[str, Any]]:
    """Return path and content of what a component's own settings stand in."""
    for file in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
        if (path := f"{folder}/{file}") in facts.documents:
            return path, facts.documents[path]
    raise ModelCorrupt(f"{facts.root} has no {folder}/config.json", hint="download the repository again, all of it")


def _kind(document: str, config: Mapping[str, Any]) -> Kind:
    if document.endswith("/scheduler_config.json"):
        return "scheduler"
    if document.endswith("/tokenizer_config.json"):
        return "tokenizer"
    return "diffusers" if "_class_name" in config else "transformers"


def _library_of(kind: Kind) -> Literal["diffusers", "transformers"]:
    return "diffusers" if kind in ("diffusers", "scheduler") else "transformers"


def _own_class(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    for value in (config.get("_class_name"), named, config.get("tokenizer_class")):
        if isinstance(value, str):
            return value
    return "AutoModel"


def _auto_mapped(config: Mapping[str, Any], class_name: str) -> Any:
    """Return what `auto_map` says of a class: by the class itself, or by the Auto class that the index asks for."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, Mapping):
        return None
    for named in _references(auto_map):
        if named.rpartition(".")[2] == class_name:
            return named
    # AutoTokenizer has two: a slow one, and a fast one that may be null.
    given = auto_map.get(class_name, auto_map.get("AutoModel") if class_name == config.get("_class_name") else None)
    return next((item for item in reversed(given) if item), None) if isinstance(given, list) else given


# -- whether it fits -------------------------------------------------------------------------------------------------


def _check_parts(facts: ModelFacts, index_path: str, parts: tuple[_Part, ...], *, has_own_pipeline: bool) -> None:
    names = {part.name for part in parts}
    missing = [] if has_own_pipeline else [name for name in (*REQUIRED, "transformer") if name not in names]
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


def _boundary(facts: ModelFacts, parts: tuple[_Part, ...]) -> float | None:
    """Return the boundary between two experts. Parts of diffusers' classes must fit; what own ones take, they know."""
    known = {part.name: part.class_name for part in parts if part.code is None}
    if all(part.name in known for part in parts if part.name in _PARTS_THAT_MUST_FIT):
        return check_fit(facts, known, facts.configs.get("transformer", {}), facts.configs.get("vae", {}))
    boundary = facts.index.get("boundary_ratio")
    if boundary is None:
        return None
    if isinstance(boundary, bool) or not isinstance(boundary, int | float) or not 0 <= boundary <= 1:
        raise ModelCorrupt(f"model_index.json has boundary_ratio={boundary!r}, which is no share of 0 to 1")
    return float(boundary)


def _settings(index: Mapping[str, Any]) -> dict[str, bool | int | float | str | None]:
    """Return the plain values of an index: what diffusers would pass to a pipeline beside its components."""
    found: dict[str, bool | int | float | str | None] = {}
    for name, value in index.items():
        plain = value is None or isinstance(value, bool | float)
        plain = plain or (isinstance(value, int) and abs(value) <= 2**53)
        plain = plain or (isinstance(value, str) and len(value) <= MAX_SETTING_CHARS)
        if plain and not name.startswith("_") and _NAME.fullmatch(name) and len(found) < MAX_SETTINGS:
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
    parts: tuple[_Part, ...],
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
        code = {path: fact for path, fact in approved.items() if _IMPORTABLE.fullmatch(path)}
        if len(code) > MAX_CODE_FILES:
            raise ModelNotCompatible(
                f"{facts.root} has {len(code)} Python files, at most {MAX_CODE_FILES} can be shown"
            )
        admitted |= code
    return tuple(admitted[path] for path in sorted(admitted))


def _identity(fact: FileFact) -> tuple[int, int, int, int]:
    return fact.device, fact.inode, fact.size, fact.mtime_ns
