"""What a user would write for Animate and Wan's relatives without wan-compat, several models in one process.

    plain_relatives.py CASES_JSON

CASES_JSON: [{"model", "class", "output", "arguments", "media", "seed"}]. `media` names an argument and a file with
pictures, with how many are taken: null for the one, n for the first, -n for the last, "tensor" and [n] for the first one
and the last n as a tensor. It shares no code with the worker, which must make the same bytes. Answers with an array of
frames for each case, as export_to_video converts them.
"""

import json
import os
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers.models.autoencoders import autoencoder_kl_wan  # noqa: E402
from PIL import Image, ImageSequence  # noqa: E402

torch.set_num_threads(len(os.sched_getaffinity(0)))


def through_onednn(self, value, weight, bias):
    return torch.mkldnn_convolution(
        value, weight, bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
    )


# As the worker's, on both sides: for the class that only the VAE uses.
autoencoder_kl_wan.WanCausalConv3d._conv_forward = through_onednn


def read(path, take, mode):
    frames = [frame.convert(mode) for frame in ImageSequence.Iterator(Image.open(path))]
    if take is None:
        return frames[0]
    if take == "tensor":
        return as_tensor(frames[:1])
    if isinstance(take, list):
        return as_tensor(frames[-take[0] :])
    return frames[:take] if take > 0 else frames[take:]


def as_tensor(frames):
    pixels = np.stack([np.asarray(frame).astype("float32") / 255.0 for frame in frames])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).unsqueeze(0)


for case in json.loads(Path(sys.argv[1]).read_text()):
    pipeline = getattr(diffusers, case["class"]).from_pretrained(case["model"], local_files_only=True)
    is_modular = isinstance(pipeline, diffusers.ModularPipeline)
    if is_modular:
        pipeline.load_components(local_files_only=True)
        for name, scale in case["guiders"].items():
            pipeline.update_components(**{name: diffusers.ClassifierFreeGuidance(guidance_scale=scale)})
    pipeline.set_progress_bar_config(disable=True)
    given = dict(case["arguments"])
    for name, (path, take, mode) in case["media"].items():
        given[name] = read(path, take, mode)
    generator = torch.Generator().manual_seed(case["seed"])
    answer = pipeline(**given, generator=generator)
    video = answer.values["videos"][0] if is_modular else answer.frames[0]
    np.save(case["output"], np.stack([(np.asarray(frame) * 255).astype(np.uint8) for frame in video]))
