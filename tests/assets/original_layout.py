"""Small models in the layout of the original program: `original_model("t2v")`.

Made from a tiny diffusers model by the tables of `policies/conversion`, backwards: its tensors get their original names,
the text encoder, VAE and image encoder are pickled as Wan's repositories have them, the transformer is safetensors beside
a `config.json` with the fields of `WanModel`. As a command, `python -m tests.assets.original_layout KIND OUTDIR` writes
both, since it imports torch: the original in OUTDIR/original, the diffusers model that it came from in OUTDIR/diffusers,
and that model with pickled weights in OUTDIR/pickled.

The tables are not their own proof: a name that was wrong in both directions would go unseen here. Others hold them
against the names that Wan's own classes and diffusers' functions gave (tests/policies/conversion, tests/workers).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filelock

from tests.assets import tiny_wan
from wan_compat.policies.conversion import renames as table
from wan_compat.policies.conversion import vae
from wan_compat.policies.conversion.renames import Rename

TOKENIZER = "google/umt5-xxl"
NAMES = {
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    "vae": "Wan2.1_VAE.pth",
    "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}


def original_model(kind: str) -> tuple[Path, Path]:
    """Return (original folder, the diffusers folder it came from), made once per machine. Copy them to change them.

    A third one beside them, `pickled`, is the diffusers folder with its weights as pickles.
    """
    cache = tiny_wan.cache_folder(Path(__file__), Path(table.__file__), Path(vae.__file__))
    folder = cache / f"original-{kind}"
    with filelock.FileLock(cache / f"original-{kind}.lock", timeout=tiny_wan.BUILD_TIMEOUT_S):
        if not folder.is_dir():
            unfinished = cache / f"original-{kind}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [sys.executable, "-m", "tests.assets.original_layout", kind, str(unfinished)]
            root = Path(__file__).parents[2]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=tiny_wan.BUILD_TIMEOUT_S)
            if done.returncode != 0:
                raise RuntimeError(f"making {kind} failed:\n{done.stderr[-3000:]}")
            unfinished.rename(folder)
    return folder / "original", folder / "diffusers"


def write_both(kind: str, folder: Path) -> None:
    """Write the two folders. What an original cannot say is first set in the diffusers model to what it must be."""
    source = folder / "diffusers"
    shutil.copytree(tiny_wan.tiny_model(kind), source)
    if kind == "ti2v":
        latents = {"latents_mean": list(vae.LATENTS_MEAN_22), "latents_std": list(vae.LATENTS_STD_22)}
        _change(source / "vae" / "config.json", latents)
    if kind == "i2v":
        _widen_image_encoder(source / "image_encoder")
    write_original(source, folder / "original")
    write_pickled(source, folder / "pickled")


def _change(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _widen_image_encoder(folder: Path) -> None:
    """Replace the tiny CLIP by one with 80 channels a head, as Wan's has: an original does not say how many."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.CLIPVisionConfig(
        hidden_size=80,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=32,
        patch_size=16,
        intermediate_size=37,
        hidden_act="gelu",
        projection_dim=1024,
    )
    shutil.rmtree(folder)
    transformers.CLIPVisionModel(config).save_pretrained(folder)


def write_original(source: Path, folder: Path) -> None:
    """Write the diffusers model at `source` into `folder` as an original repository."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    experts = (source / "transformer_2").is_dir()
    for name in ("transformer", "transformer_2"):
        if not (source / name).is_dir():
            continue
        config = read(source / name)
        place = (
            folder / {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}[name]
            if experts
            else folder
        )
        place.mkdir(exist_ok=True)
        tensors = load_file(source / name / "diffusion_pytorch_model.safetensors")
        save_file(backwards(tensors, transformer_table(config)), place / "diffusion_pytorch_model.safetensors")
        (place / "config.json").write_text(json.dumps(original_config(config)))
    vae_config = read(source / "vae")
    parts: dict[str, tuple[str, Iterable[Rename], str]] = {
        "text_encoder": (
            "model.safetensors",
            t5_table(json.loads((source / "text_encoder/config.json").read_text())),
            "",
        ),
        "vae": ("diffusion_pytorch_model.safetensors", vae_table(vae_config), ""),
    }
    if (source / "image_encoder").is_dir():
        clip = read(source / "image_encoder")
        parts["image_encoder"] = ("model.safetensors", clip_table(clip), "vision_model.")
    for name, (file, renames, prefix) in parts.items():
        tensors = {f"{prefix}{key}": value for key, value in load_file(source / name / file).items()}
        state = backwards(tensors, renames)
        if name == "image_encoder":
            state |= {"log_scale": torch.zeros(()), "textual.token_embedding.weight": torch.zeros(4, 2)}
            state["visual.head"] = torch.zeros(2, 2)
        torch.save(
            state, folder / (NAMES[name] if vae_config["z_dim"] == 16 else NAMES[name].replace("Wan2.1", "Wan2.2"))
        )
    shutil.copytree(source / "tokenizer", folder / TOKENIZER)


def write_pickled(source: Path, folder: Path) -> None:
    """Copy a diffusers folder, its weights as pickles under the names that older versions gave them."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(source, folder)
    for path in folder.glob("*/*.safetensors"):
        name = "pytorch_model.bin" if path.name == "model.safetensors" else path.with_suffix(".bin").name
        torch.save(load_file(path), path.with_name(name))
        path.unlink()


def read(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def backwards(tensors: dict[str, Any], renames: Iterable[Rename]) -> dict[str, Any]:
    """Return the tensors under their original names and shapes; every one must be in the table."""
    import torch

    whole: dict[str, list[Any]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    left = dict(tensors)
    for rename in renames:
        whole.setdefault(rename.old, []).append(left.pop(rename.new))
        shapes[rename.old] = rename.old_shape
    assert not left, sorted(left)
    return {name: torch.cat(parts).reshape(shapes[name]).clone() for name, parts in whole.items()}


def transformer_table(config: dict[str, Any]) -> tuple[Rename, ...]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config["patch_size"]
    sizes = {
        "d": width,
        "c": config["in_channels"],
        "o": config["out_channels"] * patch[0] * patch[1] * patch[2],
        "t": config["text_dim"],
        "q": config["freq_dim"],
        "f": config["ffn_dim"],
        "p0": patch[0],
        "p1": patch[1],
        "p2": patch[2],
    }
    if config.get("image_dim"):
        sizes["i"] = config["image_dim"]
    if config.get("vace_in_channels"):
        sizes["e"] = config["vace_in_channels"]
    return table.transformer_renames(
        sizes,
        layers=config["num_layers"],
        vace_layers=len(config.get("vace_layers") or ()),
        image=bool(config.get("image_dim")),
        image_positions=False,
    )


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    fields = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "eps": 1e-6,
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "model_type": "i2v" if config["in_channels"] == 36 else "t2v",
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "out_dim": config["out_channels"],
        "text_len": 512,
    }
    if config.get("vace_layers"):
        fields |= {"_class_name": "VaceWanModel", "model_type": "vace", "vace_layers": config["vace_layers"]}
    return fields


def t5_table(config: dict[str, Any]) -> tuple[Rename, ...]:
    sizes = {
        "v": config["vocab_size"],
        "d": config["d_model"],
        "a": config["d_kv"] * config["num_heads"],
        "f": config["d_ff"],
        "h": config["num_heads"],
        "b": config["relative_attention_num_buckets"],
    }
    return table.text_encoder_renames(sizes, layers=config["num_layers"])


def clip_table(config: dict[str, Any]) -> tuple[Rename, ...]:
    side = config["image_size"] // config["patch_size"]
    sizes = {
        "d": config["hidden_size"],
        "c": 3,
        "k": config["patch_size"],
        "n": side * side + 1,
        "f": config["intermediate_size"],
    }
    return table.image_encoder_renames(sizes, layers=config["num_hidden_layers"])


def vae_table(config: dict[str, Any]) -> tuple[Rename, ...]:
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


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tests.assets.original_layout KIND OUTDIR")
    write_both(sys.argv[1], Path(sys.argv[2]))
