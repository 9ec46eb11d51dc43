"""Reading a model folder into facts: bounded, without torch, and without believing anything it says.

Every limit is explicit, because the folder may be hostile: the size and depth of JSON, the number of files, the size of
a safetensors header, the counts and ranges inside it. Links are followed only where a Hugging Face cache uses them:
from a snapshot into the same repository's `blobs/`.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from wan_compat.policies.facts import FileFact, ModelFacts, TensorFact, WeightFile
from wan_compat.protocol.errors import ModelCorrupt, ModelIndexMissing, ModelNotFound, ModelUnreadable, clean_text

MAX_FILES = 2000
MAX_DEPTH = 3
MAX_JSON_BYTES = 4 << 20
MAX_JSON_DEPTH = 32
# Of one document, counted before anything is built: `[[],[],...` costs a byte of file per 30 bytes of memory.
MAX_JSON_VALUES = 250_000
MAX_HEADER_BYTES = 8 << 20  # safetensors itself allows 100 MB; the largest Wan shard has 0.3 MB
MAX_TENSORS = 20_000  # of one component; the largest Wan transformer has 1,100, quantised ones three times that

# https://github.com/huggingface/safetensors#format; sub-byte types are not used by any Wan repository.
_DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_model(path: str) -> ModelFacts:
    """Read the facts of a model folder in diffusers layout.

    Raises:
        ModelNotFound: No such folder.
        ModelIndexMissing: It is not in diffusers layout.
        ModelUnreadable: Files may not be read by this user, or links lead out of the repository.
        ModelCorrupt: Malformed JSON or safetensors headers, or more of something than any real model has.
    """
    root = os.path.abspath(path)
    if not os.path.isdir(root):
        what = "a file" if os.path.exists(root) else "nothing"
        raise ModelNotFound(
            f"{path!r} is {what}; a folder with model_index.json is needed",
            hint="give the folder of a Wan model in diffusers layout",
        )
    files = {fact.path: fact for fact in _walk(root)}
    if "model_index.json" not in files:
        found = ", ".join(sorted(files)[:5]) or "no files"
        raise ModelIndexMissing(
            f"{path!r} has no model_index.json (found: {clean_text(found, 200)})",
            hint="give the top folder of a repository in diffusers layout; "
            "Wan-AI names these repositories with -Diffusers at the end",
        )
    documents = {"model_index.json": _read_json(files["model_index.json"])}
    index = documents["model_index.json"]
    weights: dict[str, WeightFile] = {}
    for folder in sorted({name.split("/")[0] for name in files if name.count("/") == 1}):
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if (fact := files.get(f"{folder}/{name}")) is not None:
                documents[fact.path] = _read_json(fact)
                break
        if folder in index:
            weights.update(_read_headers(folder, files))
    return ModelFacts(root=root, files=files, documents=documents, weights=weights)


def _walk(root: str) -> Iterator[FileFact]:
    boundary = _repository_boundary(root)
    count = 0
    pending = [("", 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except PermissionError as error:
            raise ModelUnreadable(
                f"folder {error.filename!r} may not be read", hint="run as the user who owns the model"
            ) from error
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            count += 1
            if count > MAX_FILES:
                raise ModelCorrupt(
                    f"{root!r} has more than {MAX_FILES} files", hint="give the model's own folder, not a parent"
                )
            real = os.path.realpath(entry.path)
            if entry.is_symlink() and os.path.commonpath([real, boundary]) != boundary:
                raise ModelUnreadable(
                    f"{clean_text(relative, 200)!r} is a link that leads out of the repository",
                    hint="copy the file into the folder if you trust where it points",
                )
            try:
                info = os.stat(real)
            except FileNotFoundError as error:
                raise ModelCorrupt(
                    f"{clean_text(relative, 200)!r} is a link to nothing", hint="download the repository again"
                ) from error
            if stat.S_ISDIR(info.st_mode):
                if depth + 1 < MAX_DEPTH and not entry.is_symlink():
                    pending.append((relative, depth + 1))
            elif stat.S_ISREG(info.st_mode):
                yield FileFact(relative, real, info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns)


def _repository_boundary(root: str) -> str:
    """Return the folder that links may lead into: the repository's own, for a Hugging Face cache snapshot."""
    real = os.path.realpath(root)
    parent = os.path.dirname(real)
    repository = os.path.dirname(parent)
    if os.path.basename(parent) == "snapshots" and os.path.isdir(os.path.join(repository, "blobs")):
        return repository
    return real


def _open(fact: FileFact) -> int:
    try:
        return os.open(fact.real_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise ModelUnreadable(
            f"{fact.real_path!r} may not be read by this user", hint="run as the user who owns the model"
        ) from error
    except OSError as error:
        raise ModelCorrupt(f"{fact.real_path!r} cannot be opened: {error.strerror}") from error


def _read_json(fact: FileFact) -> Mapping[str, Any]:
    if fact.size > MAX_JSON_BYTES:
        raise ModelCorrupt(f"{fact.path} has {fact.size} bytes, more than any configuration needs")
    descriptor = _open(fact)
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(MAX_JSON_BYTES + 1)
    return parse_json(raw, fact.path)


def parse_json(raw: bytes, name: str) -> Mapping[str, Any]:
    """Parse one JSON object of bounded depth without duplicate keys. Raises ModelCorrupt naming `name`."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                # Two readers may take different ones: what was checked must be what is loaded.
                raise ModelCorrupt(f"{name} has the key {clean_text(key, 80)!r} twice", hint="download it again")
            found[key] = value
        return found

    # Signs inside strings count too, which only makes the limits stricter.
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > MAX_JSON_VALUES:
        raise ModelCorrupt(f"{name} has {values} values, more than any configuration or header needs")
    depth = 0
    for byte in raw.translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise ModelCorrupt(f"{name} is nested deeper than {MAX_JSON_DEPTH}, more than any configuration needs")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ModelCorrupt(
            f"{name} is not valid JSON: {clean_text(str(error), 200)}", hint="download the file again"
        ) from error
    if not isinstance(value, dict):
        raise ModelCorrupt(f"{name} holds a {type(value).__name__}, not an object", hint="download the file again")
    if _SURROGATE.search(raw):
        # Half a character is a Python string that can be neither printed nor sent.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ModelCorrupt(
                f"{name} holds half a character (\\uD800 to \\uDFFF)", hint="download it again"
            ) from error
    return value


def _read_headers(folder: str, files: Mapping[str, FileFact]) -> dict[str, WeightFile]:
    found: dict[str, WeightFile] = {}
    count = 0  # of entries, not of names: the same name in a thousand files has to be read a thousand times
    for path, fact in files.items():
        if not (path.startswith(f"{folder}/") and path.count("/") == 1 and path.endswith(".safetensors")):
            continue
        header = read_safetensors_header(fact)
        count += len(header)
        if count > MAX_TENSORS:
            raise ModelCorrupt(f"{folder} has more than {MAX_TENSORS} tensors")
        found[path] = WeightFile(path, "safetensors", header, {}, 0)
    return found


def read_safetensors_header(fact: FileFact) -> dict[str, TensorFact]:
    """Read and check the header of one safetensors file: 8 bytes little-endian length, then JSON, then the data.

    The tensors must fill the data exactly, each as large as its shape and type say, so that what a loader maps is
    what was counted here. Raises ModelCorrupt.
    """

    def corrupt(why: str) -> ModelCorrupt:
        return ModelCorrupt(f"{fact.path} is not a sound safetensors file: {why}", hint="download the file again")

    descriptor = _open(fact)
    with os.fdopen(descriptor, "rb") as file:
        prefix = file.read(8)
        if prefix[:7] == b"version":
            raise ModelCorrupt(
                f"{fact.path} is a Git LFS pointer, not the weights",
                hint="run `git lfs pull` in the repository, or download the file itself",
            )
        if len(prefix) < 8:
            raise corrupt(f"{fact.size} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if not 2 <= length <= min(MAX_HEADER_BYTES, fact.size - 8):
            raise corrupt(f"a header of {length} bytes in a file of {fact.size}")
        header = parse_json(file.read(length), fact.path)
    spans, found = [], {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict):
            raise corrupt(f"tensor {clean_text(name, 80)!r} is not described")
        dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        width = _DTYPE_BYTES.get(dtype) if isinstance(dtype, str) else None
        if width is None:
            raise corrupt(f"tensor {clean_text(name, 80)!r} has the type {clean_text(repr(dtype), 40)}")
        if not (_naturals(shape) and len(shape) <= 8 and _naturals(offsets) and len(offsets) == 2):
            raise corrupt(f"tensor {clean_text(name, 80)!r} has no sensible shape or place")
        size = width
        for side in shape:
            size *= side
        if offsets[1] - offsets[0] != size:
            raise corrupt(
                f"tensor {clean_text(name, 80)!r} has {offsets[1] - offsets[0]} bytes, its shape needs {size}"
            )
        spans.append((offsets[0], offsets[1]))
        found[name] = TensorFact(str(dtype), tuple(shape), size)
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise corrupt("tensors overlap or leave gaps")
        position = end
    if position != fact.size - 8 - length:
        raise corrupt(f"tensors take {position} bytes, the file has {fact.size - 8 - length}")
    return found


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62 for item in value
    )
