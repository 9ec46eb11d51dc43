"""Original checkpoints at their real sizes as a worker would list them: names and shapes recorded from Wan's own classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tests.assets.corpus.tables import recorded_tensors
from tests.assets.corpus.tensors import original_names
from wan_compat.policies.conversion import ConversionPlan, choose_sources, plan_conversion
from wan_compat.policies.conversion.renames import image_encoder_renames
from wan_compat.policies.detection import detect
from wan_compat.policies.facts import FileFact, ModelFacts, TensorFact, WeightFile

Tensors = dict[str, TensorFact]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8}
VAE = "Wan2.1_VAE.pth"
VAE_22 = "Wan2.2_VAE.pth"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TRANSFORMER = "diffusion_pytorch_model.safetensors"
TOKENIZER = ("google/umt5-xxl/tokenizer.json", "google/umt5-xxl/spiece.model", "google/umt5-xxl/tokenizer_config.json")
SHIFTS = {"wan2.2-ti2v-5b": 5.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "wan-t2v-14b": {"dim": 5120, "num_heads": 40, "num_layers": 40, "in_dim": 16, "out_dim": 16, "ffn_dim": 13824},
    "wan-vace-1.3b": {"dim": 1536, "num_heads": 12, "num_layers": 30, "vace_layers": list(range(0, 30, 2))},
}


def tensors(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> Tensors:
    return {name: TensorFact(dtype, tuple(s), math.prod(s) * WIDTHS[dtype]) for name, s in shapes.items()}


def clip() -> Tensors:
    """CLIP under its original names: the vision half by our table (what it becomes is checked against the recorded class), and some of the rest."""
    sizes = {"d": 1280, "c": 3, "k": 14, "n": 257, "f": 5120}
    shapes = {rename.old: rename.old_shape for rename in image_encoder_renames(sizes, layers=32)}
    rest = {"log_scale": (), "visual.head": (1280, 1024), "textual.token_embedding.weight": (250002, 1024)}
    return tensors(shapes | rest, "F16")


def t2v(name: str = "wan-t2v-14b", vae: str = "original-vae-wan2.1") -> dict[str, Tensors]:
    """Path -> tensors of a whole original repository."""
    return {
        TRANSFORMER: tensors(original_names(name)),
        VAE if vae.endswith("2.1") else VAE_22: tensors(recorded_tensors(vae), "F32"),
        T5: tensors(recorded_tensors("original-umt5")),
    }


def facts(
    listed: Mapping[str, Tensors],
    documents: Mapping[str, Mapping[str, Any]] | None = None,
    others: tuple[str, ...] = TOKENIZER,
    root: str = "/models/original",
    is_file: bool = False,
) -> ModelFacts:
    """Facts of a folder with these weights: those of pickles are not known before a worker listed them."""
    sizes = {path: sum(t.bytes for t in found.values()) + 100_000 for path, found in listed.items()}
    documents = documents or {}
    paths = [*documents, *listed, *others]
    return ModelFacts(
        root=root,
        files={p: FileFact(p, f"{root}/{p}", sizes.get(p, 10), 0, n, 0) for n, p in enumerate(paths)},
        documents=documents,
        weights={
            path: WeightFile(path, "safetensors", found, {}, 0)
            for path, found in listed.items()
            if path.endswith(".safetensors")
        },
        is_file=is_file,
    )


def planned(listed: Mapping[str, Tensors], **options: Any) -> ConversionPlan:
    model = facts(listed, **options)
    sources = choose_sources(model, detect(model))
    return plan_conversion(model, sources, {source.fact.path: listed[source.fact.path] for source in sources}, SHIFTS)


def shapes_of(plan: ConversionPlan, folder: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for file in plan.files:
        if file.path.rpartition("/")[0] == folder:
            found |= {tensor.name: tensor.shape for tensor in file.tensors}
    return found
