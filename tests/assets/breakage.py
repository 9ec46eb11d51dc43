"""Ways in which downloads and conversions leave a model: cut files, shards, variants. For copies of `tiny_model`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def weights(model: Path, part: str) -> Path:
    """Return the one file of a part's weights, there or not."""
    return model / part / ("model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def cut_text(path: Path) -> None:
    path.write_text(path.read_text()[:20])


def in_shards(model: Path, part: str, *, listed: bool = True, whole: bool = False) -> list[Path]:
    """Write the weights of a part as two shards, with the list of them or not; return them. `whole` keeps the file."""
    one = weights(model, part)
    tensors = load_file(one)
    names = sorted(tensors)
    shards: list[Path] = []
    places: dict[str, str] = {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        shards.append(one.with_name(f"{one.stem}-{number:05d}-of-00002.safetensors"))
        save_file({name: tensors[name] for name in chosen}, shards[-1], metadata={"format": "pt"})
        places |= dict.fromkeys(chosen, shards[-1].name)
    if listed:
        one.with_name(f"{one.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    if not whole:
        one.unlink()
    return shards


def as_variant(model: Path, part: str, variant: str) -> Path:
    """Write the weights of a part a second time, as float16, under the name of a variant."""
    one = weights(model, part)
    tensors = {name: tensor.astype(np.float16) for name, tensor in load_file(one).items()}
    made = one.with_suffix(f".{variant}.safetensors")
    save_file(tensors, made, metadata={"format": "pt"})
    return made
