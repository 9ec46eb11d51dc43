"""Does the repository want code of its own to run? Every guise that a library would follow, and pickles.

What diffusers 0.42 and transformers 5 act upon: a list as `_class_name`, `custom_pipeline`, `auto_map` in any
configuration, `trust_remote_code` saved into a configuration, attention implementations and generation loops that name
a repository (CVE-2026-4372, CVE-2026-5241), component libraries that are modules of the repository, and references to
other repositories in modular indexes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.judgement.parts import (
    PICKLE,
    counted,
    files_in,
    folders,
    index_of,
    parts_of,
    repository_named,
    several,
)
from wan_compat.policies.model_index import LIBRARIES

# Key -> finding, where any value that is not empty counts.
_CODE_KEYS: Mapping[str, str] = {
    "auto_map": "remote_code_auto_map",
    "custom_pipeline": "remote_code_pipeline",
    "custom_pipelines": "remote_code_pipeline",
    "custom_revision": "remote_code_pipeline",
    "trust_remote_code": "remote_code_flag",
    "_attn_implementation_internal": "remote_code_kernel",
    "custom_generate": "remote_code_kernel",
    "hub_kernels": "remote_code_kernel",
}
# Further keys that speak of code, where a value with the form of a repository's name counts: `owner/name@rev:function`.
_CODE_WORDS = re.compile(r"attn_implementation|kernel|custom|module_path|plugin|remote|code_", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?:hf://)?[\w.-]+/[\w.-]+(?:@[\w./-]+)?(?::[\w.-]+)?")
# Long tables without settings: of tensor names, of tokens.
_TABLES = frozenset({"weight_map", "added_tokens_decoder", "vocab"})

_CODE_FILE = re.compile(r".*\.(py|pyc|pyo|pyw|pyx|pyd|so|so\.\d+|dll|dylib)", re.IGNORECASE)

# Modules of diffusers that other families' indexes name as a library: Stable Diffusion's safety checker lives in one.
_DIFFUSERS_MODULES = frozenset(
    {"stable_diffusion", "stable_diffusion_safe", "paint_by_example", "kandinsky", "wuerstchen", "audioldm2", "shap_e"}
)


def judge_code(facts: ModelFacts, architecture: Architecture) -> Iterator[Finding]:
    """Yield everything by which the repository would make a library run or fetch code, and every pickle."""
    yield from judge_documents(facts)
    yield from _libraries(facts)
    yield from _elsewhere(facts)
    yield from _files(facts)
    yield from judge_pickles(facts, architecture)


def judge_documents(facts: ModelFacts) -> Iterator[Finding]:
    """Yield the settings of every document that name code, however deep they are."""
    for path, document in facts.documents.items():
        component = path.partition("/")[0] if "/" in path else None
        class_name = document.get("_class_name")
        if isinstance(class_name, list):
            yield finding(
                "remote_code_pipeline",
                f"{path} names a class of the repository's own: _class_name={class_name!r}",
                component=component,
                path=path,
            )
        for key, value in _settings(document):
            code = _code_of(key, value)
            if code is not None:
                yield finding(
                    code,
                    f"{path} has {key}={value!r}, which makes a library run or fetch code",
                    component=component,
                    path=path,
                )


def _settings(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield key and value at every depth. Not recursive: the depth is the file's choice."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key in _TABLES:
                    continue
                yield key, inner
                if isinstance(inner, Mapping | list):
                    pending.append(inner)
        else:
            pending.extend(inner for inner in value if isinstance(inner, Mapping | list))


def _code_of(key: str, value: Any) -> str | None:
    if key in _CODE_KEYS:
        return _CODE_KEYS[key] if value else None
    if isinstance(value, str) and _CODE_WORDS.search(key) and _REPOSITORY.fullmatch(value):
        return "remote_code_kernel"
    return None


def _libraries(facts: ModelFacts) -> Iterator[Finding]:
    path, _ = index_of(facts)
    for part in parts_of(facts).values():
        if part.library is None or part.library in LIBRARIES or part.library in _DIFFUSERS_MODULES:
            continue
        own = [name for name in files_in(facts, part.name) if name == f"{part.library}.py"]
        source = f", which is {part.name}/{own[0]} of the repository" if own else ""
        yield finding(
            "library_unknown",
            f"{part.name} is {part.class_name} of {part.library!r}{source}, not of diffusers or transformers",
            component=part.name,
            path=path,
        )


def _elsewhere(facts: ModelFacts) -> Iterator[Finding]:
    path, _ = index_of(facts)
    sources: dict[str, list[str]] = defaultdict(list)
    for part in parts_of(facts).values():
        if part.elsewhere:
            sources[repository_named(part.elsewhere) or ""].append(part.name)
    for repository, names in sources.items():
        yield finding(
            "cross_repository_reference",
            f"{path} takes {several(names, 10)} from {repository!r}, not from the files here",
            component=names[0] if len(names) == 1 else None,
            path=path,
        )


def _files(facts: ModelFacts) -> Iterator[Finding]:
    found = sorted(path for path in facts.files if _CODE_FILE.fullmatch(path))
    if found:
        yield finding("remote_code_file", f"{counted(len(found), 'file')} of code: {several(found, 5)}", path=found[0])


def judge_pickles(facts: ModelFacts, architecture: Architecture) -> Iterator[Finding]:
    """Yield pickles: an error where they are the only form of weights that something needs, else worth knowing."""
    parts = parts_of(facts, architecture)
    beside: dict[str, list[str]] = defaultdict(list)
    for folder in folders(facts):
        names = files_in(facts, folder)
        pickles = sorted(name for name in names if PICKLE.fullmatch(name))
        if not pickles:
            continue
        where = f"{folder}/" if folder else ""
        safe = any(name.endswith((".safetensors", ".gguf")) for name in names)
        if folder in parts:
            needed = parts[folder].has_weights and not safe
        elif architecture.layout in ("diffusers", "modular"):
            needed = False  # beside the parts: an optimiser's state, a training run's arguments
        else:
            needed = architecture.layout == "original" or not safe  # VAE and text encoder beside the transformer
        if needed:
            yield finding(
                "pickle_weights",
                f"weights that are there only as a pickle: {several([where + name for name in pickles], 4)}",
                component=folder if folder in parts else None,
                path=where + pickles[0],
            )
        else:
            beside[folder] = [where + name for name in pickles]
    if beside:
        paths = [path for found in beside.values() for path in found]
        yield finding(
            "pickle_beside_safetensors",
            f"{counted(len(paths), 'pickle')} beside what is needed: {several(paths)}",
            path=paths[0],
        )
