"""What a user would write without wan-compat: load, generate, convert as export_to_video does. Prints timings as JSON.

    worker_plain_script.py MODEL REQUEST_JSON FRAMES_NPY [--onednn]

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


model, request, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
torch.set_num_threads(request.pop("threads"))
if "--onednn" in sys.argv:
    autoencoder_kl_wan.WanCausalConv3d._conv_forward = through_onednn
pipeline_class = getattr(diffusers, request.pop("class", "DiffusionPipeline"))
pipeline = pipeline_class.from_pretrained(model, local_files_only=True)
for name, mode in (
    ("image", "RGB"),
    ("last_image", "RGB"),
    ("video", "RGB"),
    ("mask", "L"),
    ("reference_images", "RGB"),
):
    given = request.get(name)
    if isinstance(given, list):
        request[name] = [PIL.Image.open(path).convert(mode) for path in given]
    elif given is not None:
        request[name] = PIL.Image.open(given).convert(mode)
pipeline.set_progress_bar_config(disable=True)
seed = request.pop("seed")
video = pipeline(**request, generator=torch.Generator().manual_seed(seed)).frames[0]
frames = np.stack([(frame * 255).astype(np.uint8) for frame in video])
first_s = time.perf_counter() - started
np.save(output, frames)
print(json.dumps({"first_s": first_s}))
