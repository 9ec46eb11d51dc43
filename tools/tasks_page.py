"""docs/tasks.md from the table of pipelines: `python -m tools.tasks_page` prints it, `--write` puts it in place.

tests/test_tasks_page.py fails when the file is not what this prints.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from wan_compat.policies.pipelines import PIPELINES, WAYS, Inputs, Way, Weights
from wan_compat.policies.tasks import FLAGS
from wan_compat.protocol.media import MAX_ALL_MEDIA_BYTES, MAX_MEDIA_BYTES, MAX_MEDIA_PIXELS, MAX_MEDIA_SIDE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tasks.md"

MODELS: Mapping[Weights, str] = {
    "text": "Wan 2.1 T2V 1.3B and 14B",
    "text_only": "Wan 2.2 T2V-A14B",
    "text_image": "Wan 2.2 TI2V-5B",
    "image_clip": "Wan 2.1 I2V 480P and 720P",
    "image_pair": "Wan 2.1 FLF2V",
    "image": "Wan 2.2 I2V-A14B",
    "vace": "Wan 2.1 VACE 1.3B and 14B, Wan 2.2 VACE-Fun",
    "animate": "Wan 2.2 Animate",
    "skyreels": "SkyReels-V2 T2V",
    "skyreels_image": "SkyReels-V2 I2V",
    "skyreels_df": "SkyReels-V2 DF",
    "chronoedit": "ChronoEdit",
    "lucy": "Lucy-Edit",
    "anyflow": "AnyFlow",
    "anyflow_far": "AnyFlow FAR",
    "helios": "Helios Base",
    "helios_pyramid": "Helios Mid",
    "helios_distilled": "Helios Distilled",
    "modular_text": "Wan 2.1 T2V as modular blocks",
    "modular_text_2": "Wan 2.2 T2V-A14B as modular blocks",
    "modular_image": "Wan 2.1 I2V as modular blocks",
    "modular_pair": "Wan 2.1 FLF2V as modular blocks",
    "modular_image_2": "Wan 2.2 I2V-A14B as modular blocks",
    "modular_vace": "Wan 2.2 VACE-Fun as modular blocks",
    "modular_helios": "Helios Base as modular blocks",
    "modular_helios_pyramid": "Helios Mid as modular blocks",
    "modular_helios_distilled": "Helios Distilled as modular blocks",
    "animate2": "Wan-Animate-2",
    "animate2_distilled": "Wan-Animate-2 Distilled",
}

_HEAD = """\
# Tasks, and what each is given

A model does what its transformer was trained for; what you give with the prompt chooses among that. `--task` says it by name,
and is needed only where two tasks take the same. The table is made from `wan_compat/policies/pipelines.py` by
`python -m tools.tasks_page --write`.

```bash
wan-compat generate I2V_MODEL --prompt "the fox turns its head" --image fox.png --output fox.mp4
wan-compat generate I2V_MODEL --prompt "day becomes night" --image day.png --last-image night.png
wan-compat generate T2V_MODEL --prompt "the same, in clay" --video walk.mp4 --strength 0.7 --num-frames 49
wan-compat generate VACE_MODEL --prompt "a red car" --video street.mp4 --mask where.png --reference car.png
wan-compat generate ANIMATE_MODEL --prompt "a clown" --image clown.png --pose-video pose.mp4 --face-video face.mp4
wan-compat generate LUCY_MODEL --prompt "make the coat red" --video walk.mp4
```

| task | models | needs | takes too | diffusers' class, from |
|---|---|---|---|---|
"""

_TAIL = f"""
A task that a model does not do, a picture that is missing and one that it does not take end with exit code 2 before anything
is loaded, and the message names what would fit. So do `--strength` and `--conditioning-scale` where they mean nothing.
`t2i` makes one frame. The class is diffusers' own; which one runs a model follows from its transformer and from the task,
not from the name in `model_index.json`, which may be wrong.

What has no pipeline in diffusers (speech to video, Fun-Control, Fun-InP, camera control) is refused with exit code 1 and the
model that does the same. `wan-compat check MODEL --task TASK` asks without generating.

## Animate, the relatives, modular blocks

- **Animate** moves the character of `--image` as `--pose-video` and `--face-video` say; with `--background-video` and `--mask` it
  takes the place of a person there. Poses and faces are what Wan's preprocessing makes of a video: it is no part of diffusers,
  and not done here. A face is read into the square that the model looks at. Clips of more than 77 frames are made in segments.
- **Wan-Animate-2** follows `--video` itself. Its attention wants `torch.compile`, which needs a compiler, and a worker has none:
  it runs eagerly, with the same values, and holds every score. That is for small sizes; real ones do not fit, and `plan` says so
  before anything is loaded.
- **SkyReels-V2 DF** makes clips of more than 97 frames in overlapping parts (17 frames); from a picture whole ones alone, 177, 257 ...
  (a limit of diffusers). With `--video` it goes on from that video's last 17 frames, which it draws again as the first ones; the video
  itself is not repeated. `--num-frames` counts what is new.
- **ChronoEdit** answers with 5 frames, of which the last is the edited picture; with more, the way there is shown (temporal
  reasoning in every step). **Lucy-Edit** edits as many frames as were asked for.
- **AnyFlow** keeps what it is given as its beginning: a picture, or the last 13 frames of a video. AnyFlow FAR makes whole chunks:
  1, 13, 25 ... 81 frames with the published models.
- **Helios** computes chunks of 33 frames and gives the first `--num-frames` of them; a video of 33 frames or more goes before. Mid and
  Distilled share `--num-inference-steps` among three sizes: a multiple of 3. diffusers' noise between sizes cannot be drawn on a
  CPU (a matrix that is singular in float32); here it is, in float64.
- **Modular blocks** (`modular_model_index.json`) run where the blocks are diffusers' own. A part is taken from the folder of its
  name. One that the index takes from another repository is never fetched: use that repository itself. Guidance scales go to the
  guiders; a guider of the repository (`guider/guider_config.json`) gives the default. They run without a plan: no offloading,
  tiles or caches. For first and last frames diffusers' blocks (0.42.1) want torchvision, and with it cut a last
  picture that is not square the wrong way round; here it is used as it is, and the frames are the ordinary pipeline's.

## Pictures and videos

- **Where they are read.** The supervisor copies each file into sealed memory and hands that over; the worker decodes it inside
  its sandbox. Only regular files, at most {MAX_MEDIA_BYTES >> 20} MiB each and {MAX_ALL_MEDIA_BYTES >> 20} MiB together.
- **Formats.** PNG, JPEG, WebP, BMP, TIFF and the first frame of a GIF, up to {MAX_MEDIA_SIDE:,} pixels a side and
  {MAX_MEDIA_PIXELS // 10**6} million in all. Videos in the containers that FFmpeg knows and that name no other file; animated
  GIF and WebP. A still picture is a video of one frame, and as a mask it serves for all frames.
- **Size.** The video has the size of `--width` and `--height`, or the family's. A picture of another shape keeps its aspect, is
  resized (Lanczos) and cut in the middle; a warning says by how much. (diffusers alone would stretch it.) A reference is
  fitted on white, whole. A picture of exactly the size is used as it is, byte for byte.
- **Length.** Frames of a video are taken from its beginning, one for one, whatever its rate; what is beyond `--num-frames` is not
  read. A video that is too short is refused with its length and the `--num-frames` that fits.
- **Masks.** White is made new, black is kept; grey is decided at one half.
- **Transparency** is laid on white, in a mask on black. 16 bits become 8. The rotation that a camera noted is applied; colour
  profiles are not.
"""


def page() -> str:
    """Return the whole page."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for way in WAYS:
        key = (way.task, _needs(way.inputs), _takes(way.inputs), _class(way))
        rows.setdefault(key, []).append(MODELS[way.weights])
    order = list(dict.fromkeys(key[0] for key in rows))
    lines = [
        f"| `{task}` | {', '.join(models)} | {needs} | {takes} | {class_name} |"
        for (task, needs, takes, class_name), models in sorted(rows.items(), key=lambda row: order.index(row[0][0]))
    ]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _needs(inputs: Inputs) -> str:
    wanted = [f"`{FLAGS[role]}`" for role in inputs.needs]
    if inputs.one_of:
        wanted.append(" or ".join(f"`{FLAGS[role]}`" for role in inputs.one_of))
    return ", ".join(wanted) or "the prompt"


def _takes(inputs: Inputs) -> str:
    taken = [
        f"`{FLAGS[role]}`" + (f" with `{FLAGS[inputs.only_with[role]]}`" if role in inputs.only_with else "")
        for role in inputs.takes
    ]
    return ", ".join([*taken, *(f"`--{option.replace('_', '-')}`" for option in inputs.options)])


def _class(way: Way) -> str:
    return f"`{way.pipeline}`, {PIPELINES[way.pipeline].min_diffusers}"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page())
    else:
        print(page(), end="")
