"""What a user would write without wan-compat: load, generate, convert as export_to_video does. Prints timings as JSON.

    worker_plain_script.py (MODEL REQUEST_JSON FRAMES_NPY)... [--onednn]

It shares no code with the worker, which must make the same bytes. `--onednn` takes the worker's convolution on both
sides, by the simplest means: for the class that only the VAE uses. `class` in the request names another pipeline than
the model's index; pictures are given as paths, videos as lists of them.
"""

import json
import sys
import time
import warnings

started = time.perf_counter()
warnings.simplefilter("ignore")

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402
import torch  # noqa: E402
from diffusers.models.autoencoders import autoencoder_kl_wan  # noqa: E402


def through_onednn(self, value, weight, bias):
    return torch.mkldnn_convolution(
        value, weight, bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
    )


PICTURES = {"image": "RGB", "last_image": "RGB", "video": "RGB", "mask": "L", "reference_images": "RGB"}


def generate(model, request, output):
    torch.set_num_threads(request.pop("threads"))
    pipeline_class = getattr(diffusers, request.pop("class", "DiffusionPipeline"))
    pipeline = pipeline_class.from_pretrained(model, local_files_only=True)
    for name in PICTURES.keys() & request.keys():
        given, mode = request[name], PICTURES[name]
        opened = [PIL.Image.open(path).convert(mode) for path in (given if isinstance(given, list) else [given])]
        request[name] = opened if isinstance(given, list) else opened[0]
    pipeline.set_progress_bar_config(disable=True)
    seed = request.pop("seed")
    video = pipeline(**request, generator=torch.Generator().manual_seed(seed)).frames[0]
    frames = np.stack([(frame * 255).astype(np.uint8) for frame in video])
    first_s = time.perf_counter() - started
    np.save(output, frames)
    return first_s


orders = [argument for argument in sys.argv[1:] if argument != "--onednn"]
if len(orders) < len(sys.argv) - 1:
    autoencoder_kl_wan.WanCausalConv3d._conv_forward = through_onednn
times = [generate(orders[at], json.loads(orders[at + 1]), orders[at + 2]) for at in range(0, len(orders), 3)]
print(json.dumps({"first_s": times[0]}))
