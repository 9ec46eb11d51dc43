"""Mutations of what lies in the folder: weights, parts, names, prefixes, places."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.assets.corpus.expected import EXPECTED, Expected
from tests.assets.corpus.files import as_cache_snapshot, typed, write_hole, write_pickle, write_safetensors
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.repositories import BUILDERS
from tests.assets.corpus.subject import (
    DONORS,
    EXPERTS,
    SINGLE,
    SINGLE_FILES,
    Subject,
    loosen,
    only,
    read_header,
    truncate,
)
from tests.assets.corpus.tables import recorded_tensors
from tests.assets.corpus.tensors import original_names


def weights_missing(subject: Subject) -> Expected | None:
    """The configuration alone: right where diffusers' fields say everything."""
    if not subject.has_weights or subject.index is None or subject.name.startswith(("krea", "FastVideo/Wan2.2-S2V")):
        return None
    for folder in subject.denoisers:
        for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
            path.unlink()
    return subject.expected


def weights_corrupt(subject: Subject) -> Expected | None:
    """Weights that were never downloaded, or not to their end: the configuration is left."""
    if not subject.has_weights or subject.index is None or subject.name.startswith(("krea", "FastVideo/Wan2.2-S2V")):
        return None
    kind = subject.rng.randrange(3)
    for folder in subject.denoisers:
        for path in folder.glob("*.safetensors"):
            if kind == 0:
                path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n")
            elif kind == 1:
                truncate(path, 100)
            else:
                path.write_bytes(b"")
    return subject.expected


def weights_pickled(subject: Subject) -> Expected | None:
    """The same repository with .bin weights, as some were published: nobody reads those."""
    expected = weights_missing(subject)
    if expected is not None:
        for folder in subject.denoisers:
            write_pickle(folder / "diffusion_pytorch_model.bin", 10**9)
    return expected


def shard_missing(subject: Subject) -> Expected | None:
    if not subject.has_weights or subject.name.startswith("krea"):
        return None
    found = False
    for folder in subject.denoisers:
        shards = sorted(folder.glob("*-of-*.safetensors"))
        if len(shards) > 2:
            subject.rng.choice(shards[1:-1]).unlink()
            found = True
    # What is gone may be what told two models apart.
    return loosen(subject.expected) if found else None


def variant_files(subject: Subject) -> Expected | None:
    """`diffusion_pytorch_model.fp16.safetensors`: what `save_pretrained(variant="fp16")` writes."""
    if not subject.has_weights or subject.index is None:
        return None
    for folder in subject.denoisers:
        for path in list(folder.glob("*.safetensors")):
            path.rename(path.with_name(path.name.replace("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")))
        for path in list(folder.glob("*.index.json")):
            text = path.read_text().replace("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
            path.with_name("diffusion_pytorch_model.safetensors.index.fp16.json").write_text(text)
            path.unlink()
    return subject.expected


def _merge(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Take the weights of a folder out of it and return what they were."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in read_header(path)[0].items():
            tensors[name] = (entry["dtype"], tuple(entry["shape"]))
        path.unlink()
    for path in folder.glob("*.index.json"):
        path.unlink()
    return tensors


def quantized(subject: Subject) -> Expected | None:
    """bitsandbytes' 4 bits: packed matrices lose their shape, and bring tensors of their own."""
    if not subject.has_weights or subject.index is None or subject.is_lookalike or subject.name.startswith("krea"):
        return None
    config = {"bnb_4bit_quant_type": "nf4", "load_in_4bit": True, "quant_method": "bitsandbytes"}
    for folder in subject.denoisers:
        packed: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (dtype, shape) in _merge(folder).items():
            if "blocks." in name and name.endswith(".weight") and len(shape) == 2:
                count = shape[0] * shape[1]
                packed[name] = ("U8", (count // 2, 1))
                packed[f"{name}.absmax"] = ("U8", (count // 64,))
                packed[f"{name}.quant_map"] = ("F32", (16,))
                packed[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", (120,))
            else:
                packed[name] = (dtype, shape)
        write_safetensors(folder / "diffusion_pytorch_model.safetensors", packed)
        subject.edit(folder / "config.json", lambda document: document.update(quantization_config=config))
    return subject.expected


@only(*SINGLE, *EXPERTS[:2], "Wan-AI/Wan2.2-TI2V-5B-Diffusers")
def fewer_layers(subject: Subject) -> Expected | None:
    """A tiny or pruned model: the same architecture, none of the published sizes."""
    for folder in subject.denoisers:
        for path in folder.glob("*.index.json"):
            path.unlink()
        tensors = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, entry in read_header(path)[0].items():
                words = name.split(".")
                if words[0] != "blocks" or int(words[1]) < 2:
                    tensors[name] = (entry["dtype"], tuple(entry["shape"]))
            path.unlink()
        write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors)
        subject.edit(folder / "config.json", lambda document: document.update(num_layers=2))
    return dataclasses.replace(subject.expected, variant="", alike=frozenset(), versions=())


@only(*DONORS)
def transformer_swapped(subject: Subject) -> Expected | None:
    """One Wan model's denoiser in another one's repository: the denoiser decides."""
    donor = subject.rng.choice([name for name in DONORS if name != subject.name])
    other = BUILDERS[donor](subject.path.parent / "donor")
    shutil.rmtree(subject.path / "transformer")
    shutil.move(other / "transformer", subject.path / "transformer")
    expected = EXPECTED[donor]
    return dataclasses.replace(loosen(expected), vae=(3,))


@only(*DONORS)
def transformer_foreign(subject: Subject) -> Expected | None:
    """A denoiser of no kin under an index that says Wan."""
    donor = subject.rng.choice(
        ["lookalike: LTX-Video", "lookalike: Mochi", "Qwen/Qwen-Image", "lookalike: Flux", "lookalike: HunyuanVideo"]
    )
    other = LOOKALIKES[donor](subject.path.parent / "donor")
    shutil.rmtree(subject.path / "transformer")
    shutil.move(other / "transformer", subject.path / "transformer")
    return Expected((False, None), ("unknown",), ("diffusers",), vae=(3,))


def vae_swapped(subject: Subject) -> Expected | None:
    """The VAE never decides, neither for Wan nor for its look-alikes."""
    if subject.index is None or not (subject.path / "vae").is_dir() or subject.name.startswith("linyq"):
        return None
    donor = subject.rng.choice(["Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"])
    other = BUILDERS[donor](subject.path.parent / "donor")
    shutil.rmtree(subject.path / "vae")
    shutil.move(other / "vae", subject.path / "vae")
    subject.edit(subject.index, lambda document: document.update(vae=["diffusers", "AutoencoderKLWan"]))
    return dataclasses.replace(subject.expected, vae=(3,))


def vae_missing(subject: Subject) -> Expected | None:
    if subject.index is None or not (subject.path / "vae").is_dir():
        return None
    shutil.rmtree(subject.path / "vae")
    return dataclasses.replace(subject.expected, vae=())


@only(*DONORS)
def denoiser_missing(subject: Subject) -> Expected | None:
    """A VAE and a text encoder, and an index that says Wan: nothing is there to judge but its word."""
    if subject.index is None:
        return None
    shutil.rmtree(subject.path / "transformer")
    subject.edit(subject.index, lambda document: document.pop("transformer"))
    return Expected((None, True), (), (), vae=(3,))


def _rewrite(path: Path, change: Callable[[str], str | None]) -> None:
    """Write a file again with other names; a tensor whose new name is None is left out."""
    header, metadata = read_header(path)
    tensors = {}
    for name, entry in header.items():
        if (new := change(name)) is not None:
            tensors[new] = (entry["dtype"], tuple(entry["shape"]))
    write_safetensors(path, tensors, metadata)


_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


@only(*SINGLE_FILES)
def prefix_changed(subject: Subject) -> Expected | None:
    if not subject.path.is_file() or subject.path.suffix != ".safetensors" or "lora" in subject.expected.layouts:
        return None
    if "component" in subject.expected.layouts and not subject.is_lookalike:
        return None
    new = subject.rng.choice(_PREFIXES)

    def change(name: str) -> str:
        for old in _PREFIXES:
            if old and name.startswith(old):
                return new + name.removeprefix(old)
        return new + name

    _rewrite(subject.path, change)
    return subject.expected


@only(*SINGLE_FILES)
def tensors_missing(subject: Subject) -> Expected | None:
    """Some tensors of later blocks are gone: an incomplete copy of the same model."""
    if (
        not subject.path.is_file()
        or subject.path.suffix != ".safetensors"
        or "single_file" not in subject.expected.layouts
    ):
        return None

    def change(name: str) -> str | None:
        inner = any(f"blocks.{number}." in name for number in range(5, 29))
        return None if inner and subject.rng.random() < 0.05 else name

    _rewrite(subject.path, change)
    return subject.expected


@only(*SINGLE_FILES)
def all_in_one(subject: Subject) -> Expected | None:
    """A ComfyUI checkpoint: denoiser, VAE and text encoder in one file."""
    if not subject.path.is_file() or subject.name in LOOKALIKES or subject.path.suffix != ".safetensors":
        return None
    if subject.expected.layouts != ("single_file",):
        return None
    header, _ = read_header(subject.path)
    bundle = {}
    for name, entry in header.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        bundle["model.diffusion_model." + name] = (entry["dtype"], tuple(entry["shape"]))
    for name, shape in recorded_tensors("original-vae-wan2.1").items():
        bundle["vae." + name] = ("BF16", shape)
    for name, shape in recorded_tensors("umt5-xxl").items():
        bundle["text_encoders.umt5xxl.transformer." + name] = ("F8_E4M3", shape)
    write_safetensors(subject.path, bundle)
    return dataclasses.replace(subject.expected, vae=(0, 3))


@only("Comfy single file: wan2.2_t2v_high_noise_14B_fp16", "Comfy single file: wan2.2_i2v_high_noise_14B_fp16")
def two_expert_files(subject: Subject) -> Expected | None:
    """A folder with the high and the low noise file of Wan 2.2 side by side."""
    tables = {"t2v": "wan-t2v-14b", "i2v": "wan-i2v-a14b"}
    task = "t2v" if "t2v" in subject.name else "i2v"
    other = subject.path.with_name(subject.path.name.replace("high", "low"))
    write_safetensors(other, typed(original_names(tables[task]), "F16"), {})
    subject.path = subject.path.parent
    return loosen(subject.expected)


_NAMES = ("stable-diffusion-v1-5", "Wan2.2-I2V-A14B-Diffusers", "Wan2.1-T2V-1.3B", "FLUX.1-dev", "VACE", "model", "a b")


def folder_renamed(subject: Subject) -> Expected | None:
    name = subject.rng.choice(_NAMES)
    if subject.path.is_file():
        target = subject.path.with_name(name + subject.path.suffix)
    else:
        target = subject.path.with_name(name)
    subject.path = subject.path.rename(target)
    return subject.expected


def extra_files(subject: Subject) -> Expected | None:
    if subject.path.is_file():
        return None
    (subject.path / "README.md").write_text("# Wan2.2 Stable Diffusion FLUX\n")
    (subject.path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    write_hole(subject.path / "assets" / "example.mp4", b"\0\0\0\x20ftypisom", 10**7)
    write_hole(subject.path / "assets" / "t2v.png", b"\x89PNG\r\n\x1a\n", 10**5)
    (subject.path / "LICENSE.txt").write_text("Apache-2.0")
    if subject.rng.random() < 0.5:
        (subject.path / "examples").mkdir(exist_ok=True)
        (subject.path / "examples" / "prompts.json").write_text('[{"prompt": "a fox"}]')
    return subject.expected


def in_cache(subject: Subject) -> Expected | None:
    if subject.path.is_file() or not any(subject.path.iterdir()):
        return None
    repository = subject.rng.choice(
        ["someone/model", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "runwayml/stable-diffusion-v1-5"]
    )
    if repository.startswith("Wan-AI") and not subject.is_lookalike and subject.name != repository:
        repository = "someone/finetune"
    subject.path = as_cache_snapshot(subject.path, subject.path.parent / "hub", repository, "f" * 40)
    return subject.expected
