"""How repositories lie on a disk: diffusers' layout, the original one, modular references, single files.

Each function returns a builder: it writes into an empty folder and returns the path that a user would give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.assets.corpus import configs
from tests.assets.corpus.files import typed, write_json, write_pickle, write_safetensors, write_weights
from tests.assets.corpus.tables import Tensors, recorded_config, recorded_tensors
from tests.assets.corpus.tensors import prefixed

Builder = Callable[[Path], Path]


@dataclasses.dataclass(frozen=True)
class Part:
    """One component of an index: what stands there, and the table its configuration and weights come from."""

    library: str | None
    class_name: str | None
    table: str | None = None
    dtype: str = "BF16"
    shards: int = 1
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config_class: str | None = None
    tensors: Tensors | None = None
    weights: bool = True

    def write(self, folder: Path, version: str) -> None:
        name = self.class_name or ""
        if name.endswith("Scheduler"):
            document = configs.scheduler_config(name, self.config.get("flow_shift"), version)
            write_json(folder / "scheduler_config.json", document)
        elif "Tokenizer" in name:
            configs.write_tokenizer(folder)
        elif "ImageProcessor" in name or name == "CLIPProcessor":
            configs.write_image_processor(folder)
        elif self.table is not None:
            document = recorded_config(self.table)
            if self.library == "transformers":
                document["architectures"] = [name]
            else:
                document |= {"_class_name": self.config_class or name, "_diffusers_version": version}
            write_json(folder / "config.json", document | dict(self.config))
            if self.weights:
                stem = "model" if self.library == "transformers" else "diffusion_pytorch_model"
                tensors = recorded_tensors(self.table) if self.tensors is None else self.tensors
                write_weights(folder, tensors, self.dtype, stem=stem, shards=self.shards)


NONE = Part(None, None)
TOKENIZER = Part("transformers", "T5TokenizerFast")
UMT5 = Part("transformers", "UMT5EncoderModel", "umt5-xxl", shards=3)
VAE21 = Part("diffusers", "AutoencoderKLWan", "vae-wan2.1", dtype="F32")
VAE22 = Part("diffusers", "AutoencoderKLWan", "vae-wan2.2", dtype="F32")
CLIP = Part("transformers", "CLIPVisionModelWithProjection", "clip-vision-projection", dtype="F32")
CLIP_PLAIN = Part("transformers", "CLIPVisionModel", "clip-vision", dtype="F32")
IMAGE_PROCESSOR = Part("transformers", "CLIPImageProcessor")


def unipc(flow_shift: float) -> Part:
    return Part("diffusers", "UniPCMultistepScheduler", config={"flow_shift": flow_shift})


def wan(table: str, *, shards: int = 12, dtype: str = "F32", **more: Any) -> Part:
    return Part("diffusers", recorded_config(table)["_class_name"], table, dtype, shards, **more)


def diffusers_repository(
    index_class: Any,
    parts: Mapping[str, Part],
    *,
    version: str = "0.35.0",
    index: str = "model_index.json",
    **fields: Any,
) -> Builder:
    """Build a repository in diffusers layout: `fields` are the index' plain values, such as `boundary_ratio`."""

    def build(folder: Path) -> Path:
        document: dict[str, Any] = {"_class_name": index_class, "_diffusers_version": version, **fields}
        for name, part in sorted(parts.items()):
            document[name] = [part.library, part.class_name]
            part.write(folder / name, version)
        write_json(folder / index, document)
        return folder

    return build


def text_to_video(
    transformer: Part, *, vae: Part = VAE21, scheduler: Part | None = None, **more: Part
) -> dict[str, Part]:
    parts = {"scheduler": scheduler or unipc(3.0), "text_encoder": UMT5, "tokenizer": TOKENIZER}
    return parts | {"transformer": transformer, "vae": vae} | more


def image_to_video(transformer: Part, *, image_encoder: Part = CLIP, **more: Any) -> dict[str, Part]:
    parts = {"image_encoder": image_encoder, "image_processor": IMAGE_PROCESSOR}
    return text_to_video(transformer, **(parts | more))


def original_repository(
    config: Mapping[str, Any],
    tensors: Tensors,
    *,
    shards: int = 6,
    dtype: str = "F32",
    vae: str = "Wan2.1_VAE.pth",
    clip: bool = False,
    experts: bool = False,
    extra: Mapping[str, int] | None = None,
) -> Builder:
    """Build a repository in the original layout: the denoiser as safetensors, everything else pickled."""

    def build(folder: Path) -> Path:
        for name in ("high_noise_model", "low_noise_model") if experts else ("",):
            write_json(folder / name / "config.json", configs.original_config(dict(config)))
            write_weights(folder / name, tensors, dtype, shards=shards)
        write_pickle(folder / "models_t5_umt5-xxl-enc-bf16.pth", configs.UMT5_BF16_PTH_BYTES)
        write_pickle(folder / vae, configs.VAE_PTH_BYTES[vae])
        configs.write_tokenizer(folder / "google" / "umt5-xxl")
        if clip:
            name = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
            write_pickle(folder / name, configs.CLIP_PTH_BYTES)
        for name, size in (extra or {}).items():
            write_pickle(folder / name, size)
        (folder / "README.md").write_text("# Wan\n")
        return folder

    return build


def wan_model(table: str, model_type: str, **more: Any) -> dict[str, Any]:
    """Return WanModel's configuration fields for a recorded transformer."""
    config = recorded_config(table)
    heads = config["num_attention_heads"]
    fields = {
        "model_type": model_type, "dim": heads * config["attention_head_dim"], "ffn_dim": config["ffn_dim"],
        "in_dim": config["in_channels"], "out_dim": config["out_channels"], "num_heads": heads,
        "num_layers": config["num_layers"],
    }  # fmt: skip
    return fields | more


def single_file(name: str, tensors: Tensors, dtype: str = "F16", prefix: str = "") -> Builder:
    def build(folder: Path) -> Path:
        path = folder / name
        write_safetensors(path, typed(prefixed(tensors, prefix), dtype), {})
        return path

    return build


def modular_reference(index_class: str, repository: str, parts: Mapping[str, Part], *, absent: bool = False) -> Builder:
    """Build a modular repository that holds nothing but references to another one."""

    def build(folder: Path) -> Path:
        document: dict[str, Any] = {
            "_blocks_class_name": "SequentialPipelineBlocks", "_class_name": index_class,
            "_diffusers_version": "0.36.0.dev0",
        }  # fmt: skip
        for name, part in sorted(parts.items()):
            hint = [part.library, part.class_name]
            reference = {
                "repo": repository, "revision": None, "subfolder": name, "type_hint": hint, "variant": None,
            }  # fmt: skip
            document[name] = [None, None, reference] if absent else [*hint, reference]
        write_json(folder / "modular_model_index.json", document)
        return folder

    return build
