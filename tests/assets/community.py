"""Repositories as communities publish them: tiny Wan models with code of their own, which leaves a mark that can be seen.

    own_pipeline        model_index.json names a class of own_pipeline.py, which imports a second file: frames inverted
    lone_pipeline       a class that diffusers does not have, in pipeline.py: frames turned upside down
    own_transformer     transformer/own_transformer.py by the index: a constant added to its output
    auto_map            the same class by `auto_map` of transformer/config.json
    own_text_encoder    a transformers class by `auto_map`, with a configuration class of its own
    own_tokenizer       by `auto_map` of tokenizer_config.json: another prompt than the given one
    own_scheduler       scheduler/own_scheduler.py: latents made smaller at the end
    own_vae             vae/own_vae.py, which changes what `decode` gives
    blocks              modular_config.json names blocks of own_blocks.py: frames inverted

Each is a copy of `tiny_model("t2v")`, whose frames without the code are known, changed where its author would change it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.assets.tiny_wan import tiny_model

OWN_PIPELINE = '''"""Negative pictures."""
import torch
from diffusers import WanPipeline

from .helpers.colours import invert


class NegativePipeline(WanPipeline):
    def __init__(self, tokenizer, text_encoder, vae, scheduler, transformer=None, transformer_2=None,
                 boundary_ratio=None, expand_timesteps=False, strength=0.5):
        super().__init__(tokenizer, text_encoder, vae, scheduler, transformer, transformer_2, boundary_ratio,
                         expand_timesteps)
        self.register_to_config(strength=strength)
        if strength != 1.0:
            raise ValueError("the setting of model_index.json did not arrive")

    @torch.no_grad()
    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        output.frames = invert(output.frames)
        return output
'''
COLOURS = "def invert(frames):\n    return 1 - frames\n"

LONE_PIPELINE = """from diffusers import WanPipeline


class UpsideDownPipeline(WanPipeline):
    def __call__(self, prompt, negative_prompt=None, height=480, width=832, num_frames=81, num_inference_steps=50,
                 guidance_scale=5.0, generator=None, max_sequence_length=512):
        output = super().__call__(
            prompt=prompt, negative_prompt=negative_prompt, height=height, width=width, num_frames=num_frames,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generator=generator,
            max_sequence_length=max_sequence_length, output_type="np",
        )
        return (output.frames[:, :, ::-1].copy(),)
"""

OWN_TRANSFORMER = """from diffusers import WanTransformer3DModel


class BrightTransformer(WanTransformer3DModel):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] - 0.5, *output[1:])
        output.sample = output.sample - 0.5
        return output
"""

OWN_TEXT_ENCODER = """from transformers import UMT5Config, UMT5EncoderModel


class QuietConfig(UMT5Config):
    model_type = "quiet_umt5"


class QuietEncoder(UMT5EncoderModel):
    config_class = QuietConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 0 + 3
        return output
"""

OWN_TOKENIZER = """from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    def __call__(self, text, **kwargs):
        return super().__call__(["a green square slides up slowly" for _ in text], **kwargs)
"""

OWN_SCHEDULER = """from diffusers import UniPCMultistepScheduler


class FadingScheduler(UniPCMultistepScheduler):
    def step(self, *args, **kwargs):
        result = super().step(*args, **kwargs)
        if isinstance(result, tuple):
            return (result[0] * 0.5, *result[1:])
        result.prev_sample = result.prev_sample * 0.5
        return result
"""

OWN_VAE = """from diffusers import AutoencoderKLWan


class NegativeVAE(AutoencoderKLWan):
    def decode(self, z, return_dict=True):
        sample = -super().decode(z, return_dict=False)[0]
        if return_dict:
            raise NotImplementedError
        return (sample,)
"""

OWN_BLOCKS = """import torch
from diffusers import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines import InputParam, OutputParam, WanBlocks

from .helpers.colours import invert


class InvertStep(ModularPipelineBlocks):
    model_name = "wan"

    @property
    def description(self):
        return "Negative pictures"

    @property
    def inputs(self):
        return [InputParam("videos", required=True)]

    @property
    def intermediate_outputs(self):
        return [OutputParam("videos", type_hint=torch.Tensor)]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.videos = invert(block_state.videos)
        self.set_block_state(state, block_state)
        return components, state


class NegativeBlocks(SequentialPipelineBlocks):
    model_name = "wan"
    block_classes = [*WanBlocks.block_classes, InvertStep]
    block_names = [*WanBlocks.block_names, "invert"]
"""


def write(model: Path, path: str, text: str) -> None:
    """Write a file of a repository."""
    (model / path).parent.mkdir(parents=True, exist_ok=True)
    (model / path).write_text(text)


def edit_json(model: Path, path: str, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    document = json.loads((model / path).read_text()) if (model / path).exists() else {}
    document = {name: value for name, value in (document | changes).items() if value is not None}
    write(model, path, json.dumps(document, indent=1))


def _own_pipeline(model: Path) -> None:
    edit_json(model, "model_index.json", _class_name=["own_pipeline", "NegativePipeline"], strength=1.0)
    write(model, "own_pipeline.py", OWN_PIPELINE)
    write(model, "helpers/colours.py", COLOURS)


def _lone_pipeline(model: Path) -> None:
    edit_json(model, "model_index.json", _class_name="UpsideDownPipeline")
    write(model, "pipeline.py", LONE_PIPELINE)


def _own_transformer(model: Path) -> None:
    edit_json(model, "model_index.json", transformer=["own_transformer", "BrightTransformer"])
    write(model, "transformer/own_transformer.py", OWN_TRANSFORMER)


def _auto_map(model: Path) -> None:
    edit_json(model, "model_index.json", transformer=["diffusers", "AutoModel"])
    auto_map = {"AutoModel": "own_transformer.BrightTransformer"}
    edit_json(model, "transformer/config.json", _class_name="BrightTransformer", auto_map=auto_map)
    write(model, "transformer/own_transformer.py", OWN_TRANSFORMER)


def _own_text_encoder(model: Path) -> None:
    edit_json(model, "model_index.json", text_encoder=["transformers", "QuietEncoder"])
    auto_map = {"AutoConfig": "own_text_encoder.QuietConfig", "AutoModel": "own_text_encoder.QuietEncoder"}
    edit_json(model, "text_encoder/config.json", model_type="quiet_umt5", auto_map=auto_map)
    write(model, "text_encoder/own_text_encoder.py", OWN_TEXT_ENCODER)


def _own_tokenizer(model: Path) -> None:
    edit_json(model, "model_index.json", tokenizer=["transformers", "OwnTokenizer"])
    auto_map = {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}
    edit_json(model, "tokenizer/tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    write(model, "tokenizer/own_tokenizer.py", OWN_TOKENIZER)


def _own_scheduler(model: Path) -> None:
    edit_json(model, "model_index.json", scheduler=["own_scheduler", "FadingScheduler"])
    write(model, "scheduler/own_scheduler.py", OWN_SCHEDULER)


def _own_vae(model: Path) -> None:
    edit_json(model, "model_index.json", vae=["own_vae", "NegativeVAE"])
    write(model, "vae/own_vae.py", OWN_VAE)


def _blocks(model: Path) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").unlink()
    modular: dict[str, Any] = {"_class_name": "WanModularPipeline", "_blocks_class_name": "NegativeBlocks"}
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] is not None:
            modular[name] = [*entry, {"pretrained_model_name_or_path": None, "subfolder": name, "type_hint": entry}]
    edit_json(model, "modular_model_index.json", **modular)
    auto_map = {"ModularPipelineBlocks": "own_blocks.NegativeBlocks"}
    edit_json(model, "modular_config.json", _class_name="NegativeBlocks", auto_map=auto_map)
    write(model, "own_blocks.py", OWN_BLOCKS)
    write(model, "helpers/colours.py", COLOURS)


COMMUNITY: dict[str, Callable[[Path], None]] = {
    "own_pipeline": _own_pipeline,
    "lone_pipeline": _lone_pipeline,
    "own_transformer": _own_transformer,
    "auto_map": _auto_map,
    "own_text_encoder": _own_text_encoder,
    "own_tokenizer": _own_tokenizer,
    "own_scheduler": _own_scheduler,
    "own_vae": _own_vae,
    "blocks": _blocks,
}


def community_model(kind: str, folder: Path) -> Path:
    """Write the repository of `kind` into `folder`, which is created, and return it."""
    shutil.copytree(tiny_model("t2v"), folder)
    COMMUNITY[kind](folder)
    return folder
