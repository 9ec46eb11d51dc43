"""Puts the trained parts together as a WanPipeline, in half precision, in the diffusers layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from tools.demo_model import networks
from tools.demo_model.mover import named_parameters
from tools.demo_model.painter import decoder_parameters, encoder_parameters

SHIFT = 5.0
STAGES = ("painter", "reader", "mover")


def export(work: Path, folder: Path) -> None:
    """Write the model of `work`'s checkpoints (averaged weights) to `folder`; the model card there stays.

    Raises:
        SystemExit: A stage has not been trained at all.
    """
    missing = [stage for stage in STAGES if not (work / f"{stage}.pt").exists()]
    if missing:
        raise SystemExit(f"{work} holds no checkpoint of {', '.join(missing)}; train them first")
    tokenizer = networks.make_tokenizer()
    vae, transformer = networks.make_vae(), networks.make_transformer()
    text_encoder = networks.make_text_encoder(len(tokenizer))
    _fill(decoder_parameters(vae), work / "painter.pt")
    _fill(encoder_parameters(vae), work / "reader.pt")
    _fill(named_parameters(transformer, text_encoder), work / "mover.pt")
    networks.tie_capitals(tokenizer, text_encoder.get_input_embeddings().weight)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=SHIFT
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.half().eval(),
        vae=vae.half().eval(),
        scheduler=scheduler,
        transformer=transformer.half().eval(),
    )
    for part in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pipeline.save_pretrained(folder)
    # transformers 5 writes the name of its backend; real Wan repositories, and the loader's list, know this one.
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text())
    index["tokenizer"] = ["transformers", "T5TokenizerFast"]
    index_path.write_text(json.dumps(index, indent=2) + "\n")


def _fill(parameters: dict[str, torch.nn.Parameter], checkpoint: Path) -> None:
    averages = torch.load(checkpoint, map_location="cpu")["average"]
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(averages[name])
