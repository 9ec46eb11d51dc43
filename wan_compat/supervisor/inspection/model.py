"""A model's files into facts: what lies there, its configurations, the headers of its weights, and what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.facts import FileFact, ModelFacts, WeightFile
from wan_compat.policies.findings import Finding, Severity, finding
from wan_compat.protocol.errors import ModelIndexMissing, clean_text
from wan_compat.supervisor.inspection import gguf_header, safetensors_header
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.json_document import is_document, read_document
from wan_compat.supervisor.inspection.locate import locate
from wan_compat.supervisor.inspection.opening import LFS_START, lfs_pointer, opened, read_at
from wan_compat.supervisor.inspection.problems import Defect, Exhausted, Problems, problem
from wan_compat.supervisor.inspection.walk import list_files

# A pointer has about 130 bytes; the specification allows 1,024.
MAX_POINTER_BYTES = 1024
# Files that a clone without LFS leaves as pointers, and by whose content a GGUF file of another name is found.
_LARGE_FILES = (
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".onnx", ".h5", ".msgpack", ".npz", ".npy", ".model", ".json",
    ".sft", ".ggml", ".dduf",
)  # fmt: skip
# Anything of this size that is not a document may be weights, whatever its name.
_LARGE_BYTES = 1 << 20

# Either says that a folder is a pipeline of modular blocks.
_MODULAR = frozenset(("modular_model_index.json", "modular_config.json"))

_SENTENCEPIECE = "spiece.model"
_SENTENCEPIECE_START = b"\n"  # the first piece: field 1 of a protobuf message, of the type that has a length

# Errors that say the folder as a whole is not what was downloaded, or leads elsewhere.
_OF_THE_WHOLE = frozenset(("path_escape", "link_broken", "too_many_files"))


def read_facts(path: str | os.PathLike[str]) -> ModelFacts:
    """Read the facts of whatever `path` means (`locate`), in any layout. What is wrong ends in `problems`.

    For a single file, `root` is its path, and `files` has it alone under its name.

    Raises:
        ModelNotFound: Nothing is there, and no such repository is in the local cache.
        ModelUnreadable: The file or folder itself may not be read by this user.
    """
    place = locate(path)
    listing, reading, weighing = Problems(), Problems(), Problems()
    files = list_files(place, listing)
    budget = Budget()
    # Should the budget not suffice for all: what lies at the top first, and components before collections of files.
    # Weights before documents: parsing a header takes more memory than it leaves behind, and the documents stay.
    components = {path.rpartition("/")[0] for path in files if path.endswith("config.json")}
    order = sorted(
        files.values(),
        key=lambda fact: (fact.path.count("/"), fact.path.rpartition("/")[0] not in components, fact.path),
    )
    weights = _read_weights(order, budget, weighing)
    documents = _read_documents(order, budget, reading)
    return ModelFacts(
        root=place.root,
        files=files,
        documents=documents,
        weights=weights,
        problems=(*listing.all(), *reading.all(), *weighing.all()),
        is_file=place.is_file,
        repository=place.repository,
        revision=place.revision,
    )


def read_model(path: str) -> ModelFacts:
    """Read the facts of a model in diffusers layout, modular ones included; what is wrong with it ends this at once.

    Files that its index does not name may be as broken as they like: no worker will see them.

    Raises:
        ModelNotFound: Nothing is there, and no such repository is in the local cache.
        ModelIndexMissing: It is not in diffusers layout.
        ModelUnreadable: Files may not be read by this user, or links lead out of the repository.
        ModelCorrupt: Malformed JSON or weight headers, or more of something than any real model has.
    """
    facts = read_facts(path)
    require_sound(facts, path)
    return facts


def require_sound(facts: ModelFacts, path: str) -> None:
    """Raise what `read_model` raises for these facts. `path` is how a user named the model."""
    index = {**facts.documents.get("modular_model_index.json", {}), **facts.index}
    for found in facts.problems:
        if found.severity is Severity.ERROR and _concerns_the_pipeline(found, index):
            raise found.to_error(facts.root)
    known = facts.files.keys() | facts.documents.keys()  # an index that was rebuilt in memory is a document alone
    if "model_index.json" not in known and not _MODULAR & known:
        found_instead = (
            "it is a single file" if facts.is_file else f"found: {', '.join(list(facts.files)[:5]) or 'no files'}"
        )
        raise ModelIndexMissing(
            f"{path!r} has no model_index.json ({clean_text(found_instead, 200)})",
            hint="give the top folder of a repository in diffusers layout; "
            "Wan-AI names these repositories with -Diffusers at the end",
        )


def _concerns_the_pipeline(found: Finding, index: Mapping[str, Any]) -> bool:
    if found.path is None or found.path in ("model_index.json", *_MODULAR) or found.code in _OF_THE_WHOLE:
        return True
    return found.path.partition("/")[0] in index


def _read_documents(order: list[FileFact], budget: Budget, problems: Problems) -> dict[str, Mapping[str, Any]]:
    documents: dict[str, Mapping[str, Any]] = {}
    for fact in order:
        if not is_document(fact.path):
            continue
        try:
            decoded = read_document(fact, budget)
        except Defect as defect:
            problems.add(defect.finding)
        except Exhausted:
            problems.add(_limit("configurations", fact))
            break
        else:
            problems.add(*decoded.notes)
            documents[fact.path] = decoded.document
    return documents


def _read_weights(order: list[FileFact], budget: Budget, problems: Problems) -> dict[str, WeightFile]:
    found: dict[str, WeightFile] = {}
    for fact in order:
        try:
            read = _header(fact, budget)
        except Defect as defect:
            problems.add(defect.finding)
        except Exhausted:
            problems.add(_limit("weight headers", fact))
            break
        else:
            if read is not None:
                found[fact.path] = read[0]
                problems.add(*read[1])
    return found


def _header(fact: FileFact, budget: Budget) -> tuple[WeightFile, tuple[Finding, ...]] | None:
    """Return a weight file's header with what is to be said about it; None for a file that has none."""
    suffix = os.path.splitext(fact.path)[1].lower()
    if suffix == ".gguf":
        return gguf_header.read_header(fact, budget)
    if (
        suffix != ".safetensors"
        and (suffix in _LARGE_FILES or fact.size >= _LARGE_BYTES)
        and not is_document(fact.path)
    ):
        with opened(fact) as descriptor:
            start = read_at(descriptor, len(LFS_START), 0)
        if start == LFS_START and fact.size <= MAX_POINTER_BYTES:
            raise lfs_pointer(fact.path, "file")
        if os.path.basename(fact.path) == _SENTENCEPIECE and not start.startswith(_SENTENCEPIECE_START):
            # A worker gets it by its name; that it is no pickle is to be known from its content.
            raise Defect(problem("weights_corrupt", fact.path, f"{fact.path} is no SentencePiece model"))
        return gguf_header.read_header(fact, budget) if start.startswith(gguf_header.MAGIC) else None
    if suffix != ".safetensors":
        return None
    with opened(fact) as descriptor:
        start = read_at(descriptor, 4, 0)
    if start != gguf_header.MAGIC:
        return safetensors_header.read_header(fact, budget)
    weights, notes = gguf_header.read_header(fact, budget)
    wrong = problem("weights_corrupt", fact.path, f"{fact.path} is a GGUF file, and no safetensors reader takes it")
    return weights, (wrong, *notes)


def _limit(what: str, fact: FileFact) -> Finding:
    message = f"there is more to read than in any model: {what} from {fact.path} on were left unread"
    return finding("reading_limit", message)
