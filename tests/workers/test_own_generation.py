"""What a pipeline of a repository's own may return, and how its frames reach the ring."""

from __future__ import annotations

import types
from typing import Any

from tests.workers.inside import in_torch_process


def clip() -> Any:
    """A video as diffusers gives it with "pt": (2 frames, 3, 4, 5), every value another."""
    import torch

    return torch.arange(120.0).reshape(2, 3, 4, 5) / 120


def returned(output: Any) -> Any:
    import torch

    from wan_compat.workers.returned_frames import returned_videos

    (video,) = returned_videos(output, 1)
    return torch.stack(list(video))


def refused(output: Any, wanted: int = 1) -> str:
    from wan_compat.protocol.errors import GenerationFailed
    from wan_compat.workers.returned_frames import returned_videos

    try:
        [list(video) for video in returned_videos(output, wanted)]
    except GenerationFailed as error:
        return error.message
    raise AssertionError("it was taken")


@in_torch_process
def test_every_form_in_which_diffusers_returns_a_video() -> None:
    import torch
    from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

    video = clip()
    array = video.permute(0, 2, 3, 1).numpy()
    state = types.SimpleNamespace(values={"prompt": "x", "videos": video[None]})
    for output in (
        WanPipelineOutput(frames=video[None]),
        WanPipelineOutput(frames=video),
        WanPipelineOutput(frames=array[None]),
        WanPipelineOutput(frames=[video]),
        WanPipelineOutput(frames=[list(video)]),
        WanPipelineOutput(frames=[list(array)]),
        (video[None],),
        video[None],
        {"frames": array},
        state,
    ):
        assert torch.equal(returned(output), video), type(output)


@in_torch_process
def test_pil_images_keep_their_bytes() -> None:
    import numpy as np
    import PIL.Image
    import torch

    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    found = returned({"frames": [[PIL.Image.fromarray(array)]]})
    assert found.dtype == torch.uint8 and (found[0].permute(1, 2, 0).numpy() == array).all()


@in_torch_process
def test_what_is_no_video_is_refused() -> None:
    import torch

    assert "no picture" in refused(5)
    assert "no picture" in refused(({"a": 1},))
    assert "no video" in refused({"latents": clip()})
    assert "no video" in refused(torch.zeros(3))
    assert "no picture" in refused([["x"]])


@in_torch_process
def test_other_than_as_many_videos_as_were_asked_for_are_refused_in_every_form_and_none_is_dropped_in_silence() -> None:
    import numpy as np
    import PIL.Image
    import torch
    from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

    from wan_compat.workers.returned_frames import returned_videos

    video = clip()
    picture = PIL.Image.fromarray(np.zeros((4, 5, 3), np.uint8))
    for output in (
        WanPipelineOutput(frames=torch.stack([video, video])),
        WanPipelineOutput(frames=[video, video]),
        WanPipelineOutput(frames=[list(video), list(video)]),
        (np.stack([video.numpy()] * 2),),
        {"frames": [[picture], [picture]]},
        types.SimpleNamespace(values={"videos": [video, video]}),
    ):
        assert refused(output) == "the pipeline returned 2 videos, and one was asked for"
        assert refused(output, 3) == "the pipeline returned 2 videos, and 3 were asked for"
        videos = [list(video) for video in returned_videos(output, 2)]
        assert len(videos) == 2 and len(videos[0]) == len(videos[1]) > 0
    assert "0 videos" in refused(video[None][:0])


def publish(picture: Any) -> Any:
    """Publish one picture into a ring that is a plain tensor; return its bytes (height, width, 3)."""
    import torch

    from wan_compat.protocol.ring import RingLayout
    from wan_compat.protocol.values import FrameSpec
    from wan_compat.workers.frames import FrameWriter

    slot = torch.zeros(4, 5, 3, dtype=torch.uint8)
    ring: Any = types.SimpleNamespace(slot=lambda layout, index: slot, announce=lambda job, index: None)
    writer = FrameWriter(ring, 1, RingLayout(FrameSpec(height=16, width=16, num_frames=1)))
    writer._layout = types.SimpleNamespace(  # type: ignore[assignment]
        frame=types.SimpleNamespace(height=4, width=5, num_frames=1)
    )
    writer.publish_picture(picture)
    return slot


@in_torch_process
def test_pictures_become_the_bytes_that_export_to_video_would_write() -> None:
    import numpy as np
    import torch

    picture = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert (publish(picture).numpy() == expected).all()
    whole = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)
    assert torch.equal(publish(whole), whole.permute(1, 2, 0))
    assert int(publish(torch.full((3, 4, 5), 1.001)).min()) == 255


@in_torch_process
def test_pictures_that_are_none_are_refused() -> None:
    import torch

    from wan_compat.protocol.errors import GenerationFailed, UnusableFrames

    nan = torch.zeros(3, 4, 5)
    nan[0, 0, 0] = float("nan")
    for picture, error in (
        (nan, UnusableFrames),
        (torch.zeros(3, 4, 5) - 1, UnusableFrames),  # of the range [-1, 1]: half of it would be cut off
        (torch.zeros(3, 4, 5) + 255, UnusableFrames),
        (torch.zeros(3, 5, 4), GenerationFailed),
        (torch.zeros(1, 4, 5), GenerationFailed),
    ):
        try:
            publish(picture)
        except error:
            continue
        raise AssertionError(error)
