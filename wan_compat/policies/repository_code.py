"""Which code a repository names as its own, and where it must lie among the approved files.

    model_index.json     "_class_name": ["my_pipeline", "MyPipeline"]          my_pipeline.py
                         "_class_name": "MyPipeline", none that runs here      pipeline.py
                         "transformer": ["my_module", "MyTransformer"]         transformer/my_module.py
    COMPONENT/*.json     "auto_map": {"AutoModel": "my_module.MyModel"}        COMPONENT/my_module.py
    modular_config.json  "auto_map": {"ModularPipelineBlocks": "block.My"}     block.py

These are the places where diffusers 0.42 and transformers 5 look. What is named elsewhere is refused, with file and
reason: another repository, a file that is not among the approved ones, kernels, and settings that switch trust on for
themselves.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn

from wan_compat.policies.admission import Kind
from wan_compat.policies.facts import CONFIG_NAMES, FileFact, ModelFacts
from wan_compat.policies.judgement.code import judge_documents
from wan_compat.policies.judgement.parts import elsewhere_of, repository_named
from wan_compat.policies.model_index import LIBRARIES, is_absent, is_component_entry, reference
from wan_compat.policies.models import raise_first
from wan_compat.policies.pipelines import KNOWN_CLASSES, PIPELINES
from wan_compat.protocol.errors import ModelCorrupt, ModelIndexMissing, ModelNotCompatible, RemoteCodeRefused
from wan_compat.protocol.values import CodeSpec

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
MODULAR_CONFIG = "modular_config.json"
LONE_PIPELINE = "pipeline.py"

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
IMPORTABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,63}/){0,4}[A-Za-z_][A-Za-z0-9_]{0,63}\.py")


@dataclasses.dataclass(frozen=True)
class Part:
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


def refuse_what_no_mode_runs(facts: ModelFacts) -> None:
    """Raise RemoteCodeRefused for code that no approval of this repository can cover, wherever it is named."""
    for path, document in facts.documents.items():
        for named in _references(document.get("auto_map")):
            if "--" in named or "/" in named:
                _refuse(facts, path, f"takes code from another repository: auto_map names {named!r}")
    documents = dict(facts.documents)
    if isinstance(facts.index.get("_class_name"), list):
        documents[INDEX] = {**facts.index, "_class_name": ""}  # judged by pipeline_code
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


def pipeline_code(
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
    if named in PIPELINES:
        return None, "pipeline"
    if isinstance(named, str) and LONE_PIPELINE in approved:
        return _code(facts, approved, INDEX, "", LONE_PIPELINE.removesuffix(".py"), named), "pipeline"
    raise ModelNotCompatible(
        f"{facts.root} is a {named}; {', '.join(PIPELINES)}, and a pipeline that lies in the repository, "
        "are what can be run here"
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
    if not NAME.fullmatch(module) or not NAME.fullmatch(class_name) or not IMPORTABLE.fullmatch(path):
        _refuse(facts, document, f"names code as {module!r}, {class_name!r}, which are not a module and a class")
    if path not in approved:
        _refuse(facts, document, f"names the class {class_name!r} of {path}, which is not among the approved files")
    return CodeSpec(module=path, class_name=class_name)


def ruling_index(facts: ModelFacts, code_kind: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return the index that names the parts. Blocks take the modular one first, as diffusers does."""
    for path in (MODULAR_INDEX, INDEX) if code_kind == "blocks" else (INDEX,):
        if path in facts.documents:
            return path, facts.documents[path]
    raise ModelIndexMissing(
        f"{facts.root} has neither {MODULAR_INDEX} nor {INDEX}: nothing says where the parts of its blocks lie",
        hint="use a repository that holds its components too",
    )


def components_of(
    facts: ModelFacts, approved: Mapping[str, FileFact], index_path: str, index: Mapping[str, Any]
) -> Iterator[Part]:
    for name, entry in sorted(index.items()):
        if name.startswith("_") or not is_component_entry(entry) or is_absent(entry):
            continue
        if not NAME.fullmatch(name):
            raise ModelCorrupt(f"{index_path} of {facts.root} has a component {name!r}, which is no name")
        if elsewhere := elsewhere_of(entry, facts):
            _refuse(facts, index_path, f"takes {name} from another repository, {repository_named(elsewhere)!r}")
        folder = reference(entry).get("subfolder", name)
        if not isinstance(folder, str) or not NAME.fullmatch(folder):
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
) -> Part:
    document, config = _config(facts, folder)
    kind = _kind(document, config)
    if library is None or class_name is None:  # a modular index may leave both to the component
        library, class_name = (
            ("diffusers" if kind in ("diffusers", "scheduler") else "transformers"),
            _own_class(config),
        )
    if library not in LIBRARIES:
        code = _code(facts, approved, index_path, folder, library, class_name)
        return Part(name, folder, class_name, kind, code)
    if (library, class_name) in KNOWN_CLASSES:
        return Part(name, folder, class_name, KNOWN_CLASSES[library, class_name])
    named = _auto_mapped(config, class_name)
    if named is None:
        raise ModelNotCompatible(
            f"component {name!r} of {facts.root} is {library}.{class_name}, which is none of the classes known here, "
            f"and {document} names no code for it"
        )
    code = _named_code(facts, approved, document, folder, named)
    return Part(name, folder, code.class_name, kind, code)


def _config(facts: ModelFacts, folder: str) -> tuple[str, Mapping[str, Any]]:
    """Return path and content of what a component's own settings stand in."""
    for file in CONFIG_NAMES:
        if (path := f"{folder}/{file}") in facts.documents:
            return path, facts.documents[path]
    raise ModelCorrupt(f"{facts.root} has no {folder}/config.json", hint="download the repository again, all of it")


def _kind(document: str, config: Mapping[str, Any]) -> Kind:
    if document.endswith("/scheduler_config.json"):
        return "scheduler"
    if document.endswith("/tokenizer_config.json"):
        return "tokenizer"
    if document.endswith("/preprocessor_config.json"):
        return "image_processor"
    of_transformers = "_class_name" not in config and ("model_type" in config or "architectures" in config)
    return "transformers" if of_transformers else "diffusers"


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
