"""Latents outlive a failed decode: the same frames come of them without denoising again, and other ways are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.workers import broken
from tests.workers.harness import WorkerProcess, ZygoteProcess, parameters, pipeline_spec
from wan_compat.protocol import messages as m
from wan_compat.protocol.plan import DecodeSpec, Tiling
from wan_compat.protocol.values import FrameSpec


def again(worker: WorkerProcess, job: int, **decoding: object) -> object:
    order = m.DecodeAgain(job=job, frames=parameters().frames, decoding=DecodeSpec(**decoding))
    return worker.generate(parameters(), job, order=order)


def test_kept_latents_give_the_same_frames_again_in_every_lossless_way(t2v_worker: WorkerProcess) -> None:
    first = t2v_worker.generate(parameters(), 1)
    for job, decoding in enumerate(({}, {"streaming": "never"}, {"dtype": "float32"}), start=2):
        result = again(t2v_worker, job, **decoding)
        assert isinstance(result.end, m.Generated), result.end
        assert np.array_equal(result.pixels, first.pixels), decoding
        assert result.end.denoise_s == 0 and {step.phase for step in result.progress} == {"decode"}
    tiled = again(t2v_worker, 5, tiling=Tiling(size=64, stride=48), conv3d="default")
    assert tiled.end.applied[1:] == ("vae_tiling:64/48", "conv3d:default")
    assert np.abs(tiled.pixels.astype(int) - first.pixels).mean() < 8  # tiles of a random VAE do not blend well
    assert np.array_equal(again(t2v_worker, 6).pixels, first.pixels)  # the model is as it was
    assert np.array_equal(t2v_worker.generate(parameters(), 7).pixels, first.pixels)


def test_of_kept_latents_of_several_videos_those_that_are_wanted_are_decoded(t2v_worker: WorkerProcess) -> None:
    frames = parameters().frames
    both = t2v_worker.generate(parameters(videos_at_once=2), 1)
    assert both.pixels.shape[0] == 2 * frames.num_frames
    assert [step.step for step in both.progress if step.phase == "decode"] == [1, 2, 3, 4, 5, 6]
    alone = t2v_worker.generate(parameters(seed=8), 2)
    assert np.abs(both.pixels[9:].astype(int) - alone.pixels).max() <= 1  # of the next seed, sums in another order
    t2v_worker.generate(parameters(videos_at_once=2), 3)
    for job, first in ((4, 0), (5, 1)):
        order = m.DecodeAgain(job=job, frames=frames, first=first, decoding=DecodeSpec(streaming="never"))
        result = t2v_worker.generate(parameters(), job, order=order)
        assert np.array_equal(result.pixels, both.pixels[9 * first : 9 * first + 9])
    order = m.DecodeAgain(job=6, frames=frames, first=1, videos=2, decoding=DecodeSpec())
    assert "no latents" in t2v_worker.generate(parameters(), 6, order=order).end.message


def test_a_second_decode_is_cancelled_within_a_piece(t2v_worker: WorkerProcess) -> None:
    """In tiles and as a whole; of latents that a first decode left when it was cancelled itself."""
    long = parameters(frames=FrameSpec(height=128, width=192, num_frames=161), num_inference_steps=1)

    def cancel(progress: m.Progress) -> None:
        if progress.phase == "decode" and progress.step == 1:
            t2v_worker.send(m.Cancel(job=progress.job))

    assert t2v_worker.generate(long, 1, on_progress=cancel).end == m.Cancelled(job=1)
    tiles = {"tiling": Tiling(size=64, stride=48)}
    for job, decoding in enumerate((tiles, {"streaming": "never"}, {"streaming": "never", **tiles}), start=2):
        order = m.DecodeAgain(job=job, frames=long.frames, decoding=DecodeSpec(**decoding))
        t2v_worker.send(order)
        t2v_worker.send(m.Cancel(job=job))
        while isinstance(message := t2v_worker.receive(), m.Progress):
            assert message.step < 3, decoding
        assert message == m.Cancelled(job=job), decoding


def test_nothing_kept_is_said_so(t2v_worker: WorkerProcess) -> None:
    failed = again(t2v_worker, 1).end
    assert isinstance(failed, m.Failed) and "no latents" in failed.message


@pytest.mark.parametrize("kind", ["transformer", "vae"])
def test_weights_that_are_no_numbers_are_blamed_by_name(
    zygote: ZygoteProcess, confined: bool, tmp_path: Path, kind: str
) -> None:
    model = broken.copy("t2v", tmp_path)
    name = {"transformer": "condition_embedder.time_proj.bias", "vae": "decoder.conv_out.bias"}[kind]
    broken.fill(model, kind, name, float("nan"))
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model)
        failed = worker.generate(parameters()).end
        assert isinstance(failed, m.Failed) and failed.code == "unusable_frames"
        assert failed.component == kind and kind in failed.message and name in failed.message
        worker.kill()


def test_a_video_of_one_value_is_unusable(zygote: ZygoteProcess, confined: bool, tmp_path: Path) -> None:
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, "vae", "decoder.conv_out.weight", 0.0)
    broken.fill(model, "vae", "decoder.conv_out.bias", -9.0)
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model)
        failed = worker.generate(parameters()).end
        assert isinstance(failed, m.Failed) and failed.code == "unusable_frames"
        assert "all 9 frames are one and the same value (0 of 255)" in failed.message
        worker.kill()


def test_each_part_loads_alone_and_a_broken_one_is_named(zygote: ZygoteProcess, confined: bool, tmp_path: Path) -> None:
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, "vae", "decoder.conv_out.bias", float("inf"))
    (model / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 100)
    spec, answers = pipeline_spec(model), {}
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        for component in spec.components:
            worker.send(m.LoadPart(pipeline=spec, component=component.name))
            answers[component.name] = worker.receive()
        worker.kill()
    assert answers["vae"].not_finite == ("decoder.conv_out.bias",)
    assert isinstance(answers["transformer"], m.Failed) and answers["transformer"].code == "model_corrupt"
    assert answers["text_encoder"].parameters > 1000 and answers["text_encoder"].not_finite == ()
    assert answers["tokenizer"].parameters == 0
