"""Tiny checkpoints with modular_model_index.json, for diffusers' modular blocks: rows of tiny_models.py's kinds.

modular_t2v, modular_a14b, modular_i2v, modular_i2v22, modular_flf2v, modular_vace22,
modular_helios, modular_helios_pyramid, modular_helios_distilled                       as without `modular_`
animate2, animate2_distilled   Animate-2, which has no other pipeline
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KINDS: Mapping[str, tuple[str, str]] = {
    # kind -> class, and the ordinary kind whose parts it has
    "modular_t2v": ("WanModularPipeline", "t2v"),
    "modular_a14b": ("Wan22ModularPipeline", "a14b"),
    "modular_i2v": ("WanImage2VideoModularPipeline", "i2v"),
    "modular_i2v22": ("Wan22Image2VideoModularPipeline", "i2v22"),
    "modular_flf2v": ("WanImage2VideoModularPipeline", "flf2v"),
    "modular_vace22": ("Wan22VaceModularPipeline", "vace22"),
    "modular_helios": ("HeliosModularPipeline", "helios"),
    "modular_helios_pyramid": ("HeliosPyramidModularPipeline", "helios_pyramid"),
    "modular_helios_distilled": ("HeliosPyramidDistilledModularPipeline", "helios_distilled"),
    "animate2": ("WanAnimate2ModularPipeline", ""),
    "animate2_distilled": ("WanAnimate2DistilledModularPipeline", ""),
}
_ANIMATE2: dict[str, Any] = {
    "text_len": 512,
    "in_dim": 36,
    "dim": 24,
    "ffn_dim": 32,
    "freq_dim": 256,
    "text_dim": 32,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 2,
    "use_img_emb": False,  # else 7 MB: the width of CLIP's embeddings is a number in the code
}


def write_modular(
    kind: str,
    folder: str,
    ordinary: Callable[[str], Any],
    common: Callable[[], dict[str, Any]],
) -> None:
    """Write the checkpoint of `kind`. `ordinary` makes the pipeline of another kind, `common` the parts of any."""
    import diffusers

    class_name, other = KINDS[kind]
    pipeline = getattr(diffusers, class_name)()
    if other:
        parts = ordinary(other)
        given = {name: part for name, part in parts.components.items() if part is not None}
        if "boundary_ratio" in pipeline.config and parts.config.boundary_ratio is not None:
            given["boundary_ratio"] = parts.config.boundary_ratio
    else:
        transformer = diffusers.WanAnimate2Transformer3DModel(**_ANIMATE2)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
        given = {**common(), "image_encoder": _clip(), "transformer": transformer, "scheduler": scheduler}
    pipeline.update_components(**given)
    pipeline.save_pretrained(folder, overwrite_modular_index=True)
    _forget_the_folder(Path(folder) / "modular_model_index.json")


def _clip() -> Any:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,  # to which the blocks resize
        patch_size=32,
        intermediate_size=37,
    )
    return transformers.CLIPVisionModel(config).eval()


def _forget_the_folder(path: Path) -> None:
    """Diffusers notes where it wrote: the same kind would give other bytes in another folder."""
    index = json.loads(path.read_text())
    for entry in index.values():
        if isinstance(entry, list) and isinstance(entry[-1], dict):
            entry[-1]["pretrained_model_name_or_path"] = None
    path.write_text(json.dumps(index, indent=2, sort_keys=True))
