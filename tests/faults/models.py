"""What can be wrong with a model's files, each put into a copy of the tiny one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.assets.breakage import as_variant, cut, cut_text, in_shards, weights
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore, make_grant

INDEX = "model_index.json"

# A pipeline that speaks as Wan's own program does (Wan-Video/Wan2.1 wan/text2video.py), and takes a number that can
# only be one.
_ORIGINAL_WORDS = """import torch
from diffusers import WanPipeline


class OriginalWordsPipeline(WanPipeline):
    @torch.no_grad()
    def __call__(self, input_prompt, n_prompt, batch_size, height, width, frame_num=81, sampling_steps=50,
                 guide_scale=5.0, seed=-1):
        assert batch_size == 1
        return super().__call__(
            prompt=input_prompt, negative_prompt=n_prompt, height=height, width=width, num_frames=frame_num,
            num_inference_steps=sampling_steps, guidance_scale=guide_scale, output_type="pt",
            generator=torch.Generator("cpu").manual_seed(seed),
        )
"""


def nan_weights(model: Path) -> None:
    tensors = load_file(weights(model, "transformer"))
    name = next(name for name in sorted(tensors) if name.endswith("attn1.to_q.weight"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, weights(model, "transformer"), metadata={"format": "pt"})


def wrong_dtypes(model: Path) -> None:
    for part, dtype in (("vae", np.float16), ("text_encoder", np.float64)):
        tensors = {name: tensor.astype(dtype) for name, tensor in load_file(weights(model, part)).items()}
        save_file(tensors, weights(model, part), metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def index(model: Path, **changes: Any) -> None:
    edit(model / INDEX, **changes)


def one_folder_deeper(model: Path) -> None:
    parts = list(model.iterdir())
    (model / "snapshot").mkdir()
    for part in parts:
        part.rename(model / "snapshot" / part.name)


def truncated(model: Path) -> None:
    cut(weights(model, "vae"))


def truncated_beside_variant(model: Path) -> None:
    as_variant(model, "vae", "fp16")
    truncated(model)


def variant_only(model: Path) -> None:
    as_variant(model, "text_encoder", "fp16")
    weights(model, "text_encoder").unlink()


def pointer_beside_shards(model: Path) -> None:
    in_shards(model, "transformer", whole=True)
    weights(model, "transformer").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    )


def shard_gone_beside_whole(model: Path) -> None:
    in_shards(model, "transformer", whole=True)[0].unlink()


def shard_gone(model: Path) -> None:
    in_shards(model, "transformer")[0].unlink()


def no_list_of_shards(model: Path) -> None:
    in_shards(model, "transformer", listed=False)


def cut_configuration(model: Path) -> None:
    cut_text(model / "vae/config.json")


def of_a_later_diffusers(model: Path) -> None:
    for path in (INDEX, "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        edit(model / path, _diffusers_version="0.99.0", an_option_of_tomorrow=True)


def pickled(model: Path) -> None:
    weights(model, "vae").unlink()
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04]q\x00.")


def other_size(model: Path) -> None:
    """The configuration of another model of the same class."""
    edit(model / "vae" / "config.json", base_dim=24)


def other_shape(model: Path) -> None:
    """One tensor that fits none of the others."""
    tensors = load_file(weights(model, "vae"))
    name = next(name for name in sorted(tensors) if name.startswith("decoder.mid_block") and tensors[name].ndim > 3)
    tensors[name] = tensors[name][1:]
    save_file(tensors, weights(model, "vae"), metadata={"format": "pt"})


def without(part: str, model: Path) -> None:
    shutil.rmtree(model / part)


def class_with_code(model: Path) -> None:
    index(model, _class_name="WanDreamPipeline")
    (model / "pipeline.py").write_text("class WanDreamPipeline: ...\n")


def own_words(model: Path) -> None:
    """A pipeline of the repository's own with other names for the same arguments; approved."""
    _own(model, _ORIGINAL_WORDS)


def own_wants(model: Path) -> None:
    """One that wants what no job has; approved."""
    _own(model, _ORIGINAL_WORDS.replace("batch_size, height", "batch_size, camera_path, height"))


def _own(model: Path, code: str) -> None:
    index(model, _class_name=["own_words", "OriginalWordsPipeline"])
    (model / "own_words.py").write_text(code)
    TrustStore().add(make_grant(read_tree(str(model)), imports=[], risks=[]))
