"""Models in other layouts than diffusers', made in numpy from the tiny ones: single files, shards, fp8, GGUF, LoRAs.

`wide_model` is a model of which the transformer is 256 wide, so that GGUF's larger blocks fit into its rows. Nothing here
imports torch.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.conversion import renames, vae
from wan_compat.policies.conversion.renames import Rename

Tensors = dict[str, np.ndarray]

WEIGHTS = "diffusion_pytorch_model.safetensors"
WIDE = {"d": 256, "c": 16, "o": 64, "t": 32, "q": 256, "f": 512, "p0": 1, "p1": 2, "p2": 2}


def load(folder: Path, name: str) -> Tensors:
    """Return the tensors of a component."""
    (file,) = (folder / name).glob("*.safetensors")
    return load_file(file)


def table_of(folder: Path, name: str) -> tuple[Rename, ...]:
    """Return the table between the original's names and those of a component of a diffusers folder."""
    config = json.loads((folder / name / "config.json").read_text())
    if name == "vae":
        sizes = vae.VaeSizes(
            residual=config["is_residual"],
            base=config["base_dim"],
            decoder_base=config.get("decoder_base_dim") or config["base_dim"],
            z=config["z_dim"],
            pixels=config["in_channels"],
            blocks=config["num_res_blocks"],
            mults=tuple(config["dim_mult"]),
            temporal=tuple(config["temperal_downsample"]),
        )
        return tuple(vae.vae_renames(sizes))
    if name == "text_encoder":
        heads, width = config["num_heads"], config["num_heads"] * config["d_kv"]
        buckets = config["relative_attention_num_buckets"]
        letters = {"v": config["vocab_size"], "d": config["d_model"], "a": width, "b": buckets, "h": heads}
        return renames.text_encoder_renames(letters | {"f": config["d_ff"]}, layers=config["num_layers"])
    if name == "image_encoder":
        side = config["image_size"] // config["patch_size"]
        letters = {"d": config["hidden_size"], "c": 3, "k": config["patch_size"], "n": side * side + 1}
        return renames.image_encoder_renames(
            letters | {"f": config["intermediate_size"]}, layers=config["num_hidden_layers"]
        )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    letters = {"d": width, "c": config["in_channels"], "t": config["text_dim"], "q": config["freq_dim"]}
    letters |= {"f": config["ffn_dim"], "o": config["out_channels"] * 4, "p0": 1, "p1": 2, "p2": 2}
    image = config.get("image_dim")
    letters |= {"i": image or 0, "e": config.get("vace_in_channels") or 0}
    letters["n"] = config.get("pos_embed_seq_len") or 0
    return renames.transformer_renames(
        letters,
        layers=config["num_layers"],
        vace_layers=len(config.get("vace_layers") or ()),
        image=image is not None,
        image_positions=letters["n"] > 0,
    )


def original(folder: Path, name: str) -> Tensors:
    """Return a component's tensors under the original program's names."""
    tensors = load(folder, name)
    bare = name == "image_encoder" and not any(key.startswith("vision_model.") for key in tensors)
    found: dict[str, list[np.ndarray]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rename in table_of(folder, name):
        key = rename.new.removeprefix("vision_model.") if bare else rename.new
        found.setdefault(rename.old, []).append(tensors.pop(key))
        shapes[rename.old] = rename.old_shape
    assert not tensors, tensors.keys()
    return {old: np.ascontiguousarray(np.concatenate(parts).reshape(shapes[old])) for old, parts in found.items()}


def prefixed(tensors: Tensors, prefix: str = "model.diffusion_model.") -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def save(tensors: Tensors, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def renamed_file(folder: Path, name: str, names: Mapping[str, str], path: Path, prefix: str = "") -> Path:
    """Write a component's own file with other names and every tensor at the same place.

    Where a mapped tensor lies, modulo the width of a vector register, decides in which order its products are summed: a
    file of another order gives frames that differ by 1 here and there, from a diffusers folder too.
    """
    (file,) = (folder / name).glob("*.safetensors")
    raw = file.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    text = json.dumps({f"{prefix}{names.get(key, key)}": entry for key, entry in header.items()}).encode()
    text += b" " * ((length - len(text)) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    return path


def original_file(folder: Path, name: str, path: Path, prefix: str = "") -> Path:
    """Write a component's own file under the original program's names, every tensor at the same place."""
    names = {rename.new: rename.old for rename in table_of(folder, name)}
    return renamed_file(folder, name, names, path, prefix)


def copy_of(model: Path, folder: Path, **components: Tensors) -> Path:
    """Copy a diffusers folder, with other tensors for some components."""
    shutil.copytree(model, folder)
    for name, tensors in components.items():
        (file,) = (folder / name).glob("*.safetensors")
        save(tensors, file)
    return folder


def wide_model(folder: Path) -> Path:
    """Write a text-to-video model with a transformer of random weights, 256 wide."""
    shutil.copytree(tiny_model("t2v"), folder)
    config_path = folder / "transformer" / "config.json"
    config = json.loads(config_path.read_text())
    config |= {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": WIDE["f"], "num_layers": 2}
    config_path.write_text(json.dumps(config))
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for rename in renames.transformer_renames(WIDE, layers=2, vace_layers=0, image=False, image_positions=False):
        one = ".norm" in rename.new and rename.new.endswith("weight")
        values = random.normal(1.0 if one else 0.0, 0.05, rename.new_shape)
        tensors[rename.new] = values.astype(np.float32)
    save(tensors, folder / "transformer" / WEIGHTS)
    return folder


def shard(folder: Path, name: str, pieces: int = 3) -> None:
    """Divide a component's file into shards, with the index that libraries look for."""
    (whole,) = (folder / name).glob("*.safetensors")
    tensors = load_file(whole)
    names = sorted(tensors)
    weight_map = {}
    for number in range(pieces):
        file = f"{whole.stem}-{number + 1:05d}-of-{pieces:05d}.safetensors"
        part = {key: tensors[key] for key in names[number::pieces]}
        save_file(part, folder / name / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    whole.unlink()
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / name / f"{whole.name}.index.json").write_text(json.dumps(index))


# ---- number formats that numpy does not have -----------------------------------------------------------------------


def save_raw(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], path: Path) -> Path:
    """Write a safetensors file from (type, shape, bytes)."""
    header, position = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
    return path


def as_bfloat16(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return tensors cut to bfloat16, for `save_raw`."""
    return {
        name: ("BF16", tensor.shape, (tensor.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
        for name, tensor in tensors.items()
    }


def _e4m3_values() -> np.ndarray:
    """Return what each of the 256 bit patterns of float8_e4m3fn means; NaN for two."""
    bits = np.arange(256)
    sign, exponent, mantissa = bits >> 7, (bits >> 3) & 15, bits & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent.astype(float) - 7))
    value = np.where((bits & 127) == 127, np.nan, value)
    return np.where(sign == 1, -value, value).astype(np.float32)


E4M3 = _e4m3_values()


def scaled_fp8(tensors: Tensors, folded: Callable[[str], bool]) -> tuple[dict[str, Any], Tensors]:
    """Return what ComfyUI's scaled fp8 files hold, for `save_raw`, and the tensors that it means."""
    order = np.argsort(E4M3)[:254]  # the NaNs are sorted last
    stored: dict[str, Any] = {"scaled_fp8": ("F8_E4M3", (2,), b"\0\0")}
    meant: Tensors = {}
    for name, tensor in tensors.items():
        if not folded(name):
            stored[name] = ("F32", tensor.shape, tensor.astype("<f4").tobytes())
            meant[name] = tensor
            continue
        scale = np.float32(np.abs(tensor).max() / 448)
        places = np.clip(np.searchsorted(E4M3[order], tensor / scale), 0, 253)
        bits = order[places].astype(np.uint8)
        stored[name] = ("F8_E4M3", tensor.shape, bits.tobytes())
        stored[f"{name.removesuffix('weight')}scale_weight"] = ("F32", (1,), np.float32(scale).tobytes())
        stored[f"{name.removesuffix('weight')}scale_input"] = ("F32", (1,), np.float32(1).tobytes())
        meant[name] = E4M3[bits] * scale
    return stored, meant


def save_gguf(tensors: Tensors, path: Path, kind: str, folded: Callable[[str], bool]) -> Tensors:
    """Write a GGUF file, with `folded` tensors in blocks of `kind`; return the tensors that it means."""
    import gguf
    from gguf import quants

    quant = gguf.GGMLQuantizationType[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "wan")
    writer.add_quantization_version(2)
    meant: Tensors = {}
    random = np.random.default_rng(1)
    for name, tensor in tensors.items():
        if tensor.ndim == 5:  # as ComfyUI-GGUF's converter does: no more than four dimensions, the shape kept beside
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(side) for side in tensor.shape])
        flat = tensor.reshape(-1, *tensor.shape[2:])[:, None] if tensor.ndim == 5 else tensor
        flat = flat.reshape(tensor.shape[0], -1) if tensor.ndim == 5 else flat
        if not folded(name):
            writer.add_tensor(name, np.ascontiguousarray(flat, dtype=np.float32))
            meant[name] = tensor
            continue
        data = _k_blocks(flat, quant, random) if kind.endswith("_K") else quants.quantize(flat, quant)
        raw = data if data.dtype == np.uint8 else None
        writer.add_tensor(name, data, raw_dtype=quant if raw is not None else None)
        meant[name] = quants.dequantize(data, quant).reshape(tensor.shape).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _k_blocks(tensor: np.ndarray, quant: Any, random: np.random.Generator) -> np.ndarray:
    """Return blocks of random bits with small scales: gguf-py reads K-quants and does not make them."""
    import gguf

    elements, size = gguf.GGML_QUANT_SIZES[quant]
    blocks = tensor.size // elements
    data = random.integers(0, 256, (blocks, size), dtype=np.uint8)
    data[:, 0:4] = np.array([0.0002, 0.001], dtype="<f2").view(np.uint8)  # d and dmin of Q4_K and Q5_K
    return data.reshape(tensor.shape[0], -1)


# ---- LoRAs -----------------------------------------------------------------------------------------------------------

LORA_ENDINGS = {"peft": ("lora_A.weight", "lora_B.weight"), "plain": ("lora_down.weight", "lora_up.weight")}


def lora_for(tensors: Tensors, layers: list[str], rank: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Return layer -> (down, up, alpha) for some layers of a transformer."""
    random = np.random.default_rng(2)
    made = {}
    for layer in layers:
        rows, columns = tensors[f"{layer}.weight"].shape
        down = random.normal(0, 0.1, (rank, columns)).astype(np.float32)
        up = random.normal(0, 0.1, (rows, rank)).astype(np.float32)
        made[layer] = (down, up, 2.0)
    return made


def lora_file(
    made: dict[str, tuple[np.ndarray, np.ndarray, float]], style: str, path: Path, *, folder: Path | None = None
) -> Path:
    """Write a LoRA in one of the styles that people publish: `diffusers`, `original`, `kohya`."""
    down_name, up_name = LORA_ENDINGS["peft" if style == "diffusers" else "plain"]
    old_names = {rename.new: rename.old for rename in table_of(folder, "transformer")} if folder is not None else {}
    found: Tensors = {}
    for layer, (down, up, alpha) in made.items():
        old = old_names.get(f"{layer}.weight", layer).removesuffix(".weight")
        stem = {
            "diffusers": f"transformer.{layer}",
            "original": f"diffusion_model.{old}",
            "kohya": f"lora_unet_{old.replace('.', '_')}",
        }[style]
        found[f"{stem}.{down_name}"] = down
        found[f"{stem}.{up_name}"] = up
        found[f"{stem}.alpha"] = np.array(alpha, dtype=np.float32)
    return save(found, path)


def merged(tensors: Tensors, made: dict[str, tuple[np.ndarray, np.ndarray, float]], weight: float) -> Tensors:
    """Return the tensors with the LoRA in them."""
    result = dict(tensors)
    for layer, (down, up, alpha) in made.items():
        result[f"{layer}.weight"] = tensors[f"{layer}.weight"] + weight * alpha / down.shape[0] * (up @ down)
    return result
