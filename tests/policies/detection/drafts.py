"""In-memory facts: what a reader would have found, without a file on disk. Shapes come from the recorded classes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from tests.assets.corpus.tables import recorded_config, recorded_tensors
from tests.assets.corpus.tensors import original_names
from wan_compat.policies.facts import FileFact, ModelFacts, TensorFact, WeightFile

_BITS = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "U8": 8, "Q4_K": 4.5}
INDEXED = {
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}

Shapes = Mapping[str, tuple[int, ...]]


def header(path: str, shapes: Shapes, dtype: str = "BF16", **metadata: str) -> WeightFile:
    tensors = {
        name: TensorFact(dtype, tuple(shape), int(math.prod(shape) * _BITS[dtype] / 8))
        for name, shape in shapes.items()
    }
    return WeightFile(path, "gguf" if path.endswith(".gguf") else "safetensors", tensors, metadata, 0)


def facts(
    *weights: WeightFile,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
    others: tuple[str, ...] = (),
    root: str = "/models/thing",
    repository: str | None = None,
) -> ModelFacts:
    """Return the facts of a folder with these files; of a single file where `root` is one."""
    paths = [*(documents or {}), *(file.path for file in weights), *others]
    return ModelFacts(
        root=root,
        files={path: FileFact(path, f"{root}/{path}", 1, 0, number, 0) for number, path in enumerate(paths)},
        documents=documents or {},
        weights={file.path: file for file in weights},
        is_file=root.endswith((".safetensors", ".gguf")),
        repository=repository,
        revision="0" * 40 if repository else None,
    )


def one_file(name: str, shapes: Shapes, dtype: str = "BF16", **metadata: str) -> ModelFacts:
    return facts(header(name, shapes, dtype, **metadata), root=f"/models/{name}")


def original(table: str, *, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return a recorded transformer under original names."""
    return {prefix + name: shape for name, shape in _original(table).items()}


_original = functools.cache(original_names)


def diffusers(
    table: str | None = None,
    *,
    pipeline: Any = "WanPipeline",
    experts: int = 1,
    weights: bool = True,
    config: Mapping[str, Any] | None = None,
    vae: str = "vae-wan2.1",
    index: Mapping[str, Any] | None = None,
    transformer_class: tuple[str, str] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
    repository: str | None = None,
) -> ModelFacts:
    """Return a repository in diffusers layout. `config` changes the transformer's fields, `index` the index's."""
    document = dict(recorded_config(table or "wan-t2v-14b"), **(config or {}))
    entry = list(transformer_class or ("diffusers", document["_class_name"]))
    names = ["transformer", "transformer_2"][:experts]
    files = []
    if weights and table is not None:
        files = [header(f"{name}/diffusion_pytorch_model.safetensors", recorded_tensors(table)) for name in names]
        files.append(header("vae/diffusion_pytorch_model.safetensors", recorded_tensors(vae)))
    documents = {
        "model_index.json": {"_class_name": pipeline, "_diffusers_version": "0.35.0", **INDEXED}
        | dict.fromkeys(names, entry)
        | dict(index or {}),
        "vae/config.json": recorded_config(vae),
        **{f"{name}/config.json": document for name in names},
        **(more or {}),
    }
    return facts(*files, documents=documents, repository=repository)
