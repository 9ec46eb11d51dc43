"""Pictures of latents while denoising: bounded, like the video that comes, and of no influence on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.demo import DEMO_CLIP, demo_model


def request_of(model: str, **fields: object) -> GenerationRequest:
    clip = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3, "seed": 1}
    return GenerationRequest(**{"model": model, "prompt": DEMO_CLIP.prompt, **clip, **fields})


def test_the_last_preview_looks_like_the_video_and_changes_nothing_of_it(supervisor: Supervisor) -> None:
    size = {"width": DEMO_CLIP.width, "height": DEMO_CLIP.height, "num_frames": DEMO_CLIP.num_frames}
    clip = {**size, "num_inference_steps": 8, "guidance_scale": DEMO_CLIP.guidance_scale}
    job = supervisor.submit(request_of(demo_model(), preview_latents=True, **clip))
    seen = [event for event in job.events() if isinstance(event, ev.LatentPreview)]
    frames = job.result().frames
    assert frames is not None and seen and seen[-1].step == 8 and seen[-1].path is None
    last = seen[-1]
    picture = np.frombuffer(last.pixels, np.uint8).reshape(last.height, last.width, 3).astype(float)
    factor = DEMO_CLIP.height // last.height
    shown = frames.frames[DEMO_CLIP.num_frames // 2].reshape(last.height, factor, last.width, factor, 3).mean((1, 3))
    assert np.corrcoef(picture.ravel(), shown.ravel())[0, 1] > 0.8
    plain = supervisor.generate(request_of(demo_model(), **clip)).frames
    assert plain is not None and np.array_equal(plain.frames, frames.frames)


def test_previews_stand_in_the_folder_beside_those_of_frames(supervisor: Supervisor, tmp_path: Path) -> None:
    folder = tmp_path / "previews"
    request = request_of(
        str(tiny_model("t2v")), preview_latents=True, preview=str(folder), output=str(tmp_path / "video.mp4")
    )
    job = supervisor.submit(request)
    paths = [event.path for event in job.events() if isinstance(event, ev.LatentPreview)]
    job.result()
    assert paths[-1] == str(folder / "latents-0003.png")
    for path in paths:
        assert path is not None and Path(path).read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith("latents-"))[0].endswith(".png")


def test_a_vae_of_48_channels_has_previews_too(supervisor: Supervisor) -> None:
    job = supervisor.submit(request_of(str(tiny_model("ti2v")), preview_latents=True, width=128))
    seen = [event for event in job.events() if isinstance(event, ev.LatentPreview)]
    assert job.result().success and seen[-1].step == 3
    assert len(seen[-1].pixels) == seen[-1].width * seen[-1].height * 3


def test_without_being_asked_there_are_none(supervisor: Supervisor) -> None:
    job = supervisor.submit(request_of(str(tiny_model("t2v"))))
    assert not [event for event in job.events() if isinstance(event, ev.LatentPreview)]
