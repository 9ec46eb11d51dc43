"""One diffusers script, run twice in one process: with diffusers' pipeline, and with SandboxedPipeline in its place.

    drop_in_script.py T2V_MODEL I2V_MODEL OUT

What both return is compared here, as floats, and OUT gets the findings as JSON. `generator` is a real torch.Generator.
"""

import json
import sys
import warnings

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan

from wan_compat import SandboxedPipeline
from wan_compat.protocol.errors import PipelineFeatureMissing

t2v, i2v, out = sys.argv[1:]
SIZE = {"height": 64, "width": 96, "num_inference_steps": 2, "guidance_scale": 4.0}
random = np.random.default_rng(3)
PICTURE = PIL.Image.fromarray(random.integers(0, 256, (64, 96, 3), np.uint8))
VIDEO = [PIL.Image.fromarray(frame) for frame in random.integers(0, 256, (9, 64, 96, 3), np.uint8)]


def seeded(number):
    return torch.Generator().manual_seed(number)


# What each is called with; the generators are made anew for each of the two.
CASES = {
    "text": (t2v, "WanPipeline", lambda: {"num_frames": 9, "generator": seeded(5)}),
    "negative, two prompts": (
        t2v,
        "WanPipeline",
        lambda: {
            "prompt": ["a red ball", "a blue cube"],
            "negative_prompt": "blurred",
            "num_frames": 5,
            "generator": [seeded(1), seeded(2)],
        },
    ),
    "pictures": (t2v, "WanPipeline", lambda: {"num_frames": 5, "generator": seeded(5), "output_type": "pil"}),
    "image, tensors": (
        i2v,
        "WanImageToVideoPipeline",
        lambda: {"image": PICTURE, "num_frames": 5, "generator": seeded(5), "output_type": "pt"},
    ),
    "video": (t2v, "WanVideoToVideoPipeline", lambda: {"video": VIDEO, "strength": 0.5, "generator": seeded(5)}),
}


def call(pipeline_class, model, arguments):
    pipeline = pipeline_class.from_pretrained(model, torch_dtype=torch.float32, local_files_only=True, **SHARED)
    pipeline.set_progress_bar_config(disable=True)
    steps = []
    tensors = {"callback_on_step_end_tensor_inputs": []}

    def on_step(pipe, step, timestep, values):
        steps.append((step, float(timestep)))
        return {}

    if "generator" in arguments and not isinstance(arguments["generator"], list):
        arguments |= {"callback_on_step_end": on_step, **tensors}
    return pipeline(**{"prompt": "a red ball bounces"} | SIZE | arguments), steps


def described(frames):
    if isinstance(frames, list):
        return [[type(one).__name__ for one in video] for video in frames]
    return [type(frames).__name__, str(frames.dtype), list(frames.shape)]


def difference(theirs, ours):
    """By how much diffusers' floats are above ours, least and most."""
    if isinstance(theirs, list):
        theirs, ours = (
            np.stack([np.stack([np.asarray(one) for one in video]) for video in x]) / 255 for x in (theirs, ours)
        )
    apart = np.asarray(theirs, np.float64) - np.asarray(ours, np.float64)
    return [float(apart.min()), float(apart.max())]


def refusals():
    """What is said of generators that a worker cannot go on from."""
    from wan_compat.supervisor.generator_seeds import take_seeds

    generator = seeded(7)
    found = [take_seeds(generator)]
    for touch in (lambda: None, lambda: (generator.manual_seed(8), torch.rand(3, generator=generator))):
        touch()
        try:
            found.append(take_seeds(generator))
        except PipelineFeatureMissing as error:
            found.append(error.code)
    found.append(take_seeds(generator.manual_seed(9)))
    return found


# The worker's convolution on both sides (wan_compat/workers: conv3d), by the simplest means.
def through_onednn(self, value, weight, bias):
    return torch.mkldnn_convolution(
        value, weight, bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
    )


autoencoder_kl_wan.WanCausalConv3d._conv_forward = through_onednn
warnings.simplefilter("ignore")
from wan_compat import Supervisor  # noqa: E402

report = {"generators": refusals()}
with Supervisor() as supervisor:
    for case, (model, name, arguments) in CASES.items():
        SHARED = {}
        theirs, their_steps = call(getattr(diffusers, name), model, arguments())
        SHARED = {"supervisor": supervisor}
        ours, our_steps = call(SandboxedPipeline, model, arguments())
        report[case] = {
            "theirs": described(theirs.frames),
            "ours": described(ours.frames),
            "difference": difference(theirs.frames, ours.frames),
            "their_steps": their_steps,
            "our_steps": our_steps,
            "warnings": list(ours.warnings),
        }
with open(out, "w") as file:
    json.dump(report, file)
