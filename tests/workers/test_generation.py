"""One generation in a real worker: the same bytes as a plain script, and every way to end early."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers import broken
from tests.workers.harness import WorkerProcess, ZygoteProcess, parameters
from wan_compat.protocol import messages as m
from wan_compat.protocol.values import FrameSpec, GenerationParams

PLAIN_SCRIPT = Path(__file__).parents[1] / "programs" / "worker_plain_script.py"


def plain_frames(model: Path, params: GenerationParams, folder: Path, *options: str) -> np.ndarray:
    request = params.model_dump(exclude={"frames", "task", "media", "videos_at_once"}, exclude_none=True)
    request |= params.frames.model_dump() | {"threads": 1}
    output = folder / "plain.npy"
    command = [sys.executable, str(PLAIN_SCRIPT), str(model), json.dumps(request), str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(output)


@pytest.mark.parametrize("kind", ["t2v"])  # the other kinds: tests/test_tasks_end_to_end.py
def test_frames_equal_a_plain_diffusers_script_byte_for_byte(
    zygote: ZygoteProcess, confined: bool, tmp_path: Path, kind: str
) -> None:
    model, params = tiny_model(kind), parameters()
    with zygote.spawn(model, confined=confined) as worker:
        loaded = worker.start(model, conv3d="default")
        result = worker.generate(params)
        worker.kill()
    assert loaded.streaming, loaded.streaming_reason
    assert isinstance(result.end, m.Generated)
    assert np.array_equal(result.pixels, plain_frames(model, params, tmp_path))
    assert result.pixels.std() > 5  # a constant picture would be equal too


@pytest.mark.long
def test_with_onednn_on_both_sides_frames_are_equal_too(zygote: ZygoteProcess, confined: bool, tmp_path: Path) -> None:
    model, params = tiny_model("t2v"), parameters(seed=11)
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model, conv3d="onednn")
        result = worker.generate(params)
        worker.kill()
    assert np.array_equal(result.pixels, plain_frames(model, params, tmp_path, "--onednn"))


@pytest.mark.long
def test_two_threads_give_the_same_frames_as_one(zygote: ZygoteProcess, confined: bool) -> None:
    model = tiny_model("t2v")
    clips = []
    for threads in (1, 2):
        with zygote.spawn(model, confined=confined) as worker:
            worker.start(model, threads=threads)
            clips.append(worker.generate(parameters()).pixels)
            worker.kill()
    assert np.abs(clips[0].astype(int) - clips[1]).max() <= 1  # sums are split differently; nothing else is


def test_whole_decode_gives_the_same_frames_as_streaming(t2v_worker: WorkerProcess, confined: bool) -> None:
    streamed = t2v_worker.generate(parameters())
    model = tiny_model("t2v")
    with t2v_worker.zygote.spawn(model, confined=confined) as worker:
        loaded = worker.start(model, streaming="never")
        whole = worker.generate(parameters())
        worker.kill()
    assert not loaded.streaming and "plan" in loaded.streaming_reason
    assert np.array_equal(streamed.pixels, whole.pixels)


def test_guidance_scale_2_reaches_a_model_with_two_experts(zygote: ZygoteProcess, confined: bool) -> None:
    model = tiny_model("a14b")
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model)
        same = worker.generate(parameters(num_inference_steps=6), job=1)
        other = worker.generate(parameters(num_inference_steps=6, guidance_scale_2=1.5), job=2)
        worker.kill()
    assert not np.array_equal(same.pixels, other.pixels)


def test_guidance_scale_2_is_not_passed_to_a_model_with_one_expert(t2v_worker: WorkerProcess) -> None:
    assert isinstance(t2v_worker.generate(parameters(guidance_scale_2=1.5)).end, m.Generated)


def test_progress_names_every_phase_step_and_latent_frame(t2v_worker: WorkerProcess) -> None:
    progress = t2v_worker.generate(parameters(num_inference_steps=3)).progress
    assert [(p.phase, p.step, p.total) for p in progress] == [
        ("text_encode", 1, 1),
        *(("denoise", step, 3) for step in (1, 2, 3)),
        *(("decode", step, 3) for step in (1, 2, 3)),
    ]


def test_first_frames_arrive_while_the_rest_is_still_decoded(t2v_worker: WorkerProcess) -> None:
    """Streaming shows: at the first Progress of decode, only the first latent frame's pixels can be there."""
    params = parameters(frames=FrameSpec(height=128, width=128, num_frames=81), num_inference_steps=1)
    seen: list[int] = []
    steps: list[int] = []
    t2v_worker.generate(params, on_frame=lambda index: seen.append(len(steps)), on_progress=lambda p: steps.append(1))
    assert len(seen) == 81
    assert seen[0] < seen[-1] - 10


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        (FrameSpec(height=64, width=96, num_frames=10), "num_frames"),
        (FrameSpec(height=72, width=96, num_frames=9), "64 or 80"),
    ],
)
def test_a_size_that_diffusers_would_round_is_refused(t2v_worker: WorkerProcess, frames: FrameSpec, part: str) -> None:
    end = t2v_worker.generate(parameters(frames=frames)).end
    assert isinstance(end, m.Failed) and end.code == "invalid_request"
    assert part in " ".join(end.fixes)


def test_nan_in_the_transformer_is_unusable_frames_after_the_first_step(
    zygote: ZygoteProcess, confined: bool, tmp_path: Path
) -> None:
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, "transformer", "proj_out.weight", float("nan"))
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model)
        result = worker.generate(parameters(num_inference_steps=50))
        worker.kill()
    assert isinstance(result.end, m.Failed) and result.end.code == "unusable_frames"
    assert "step 1 of 50" in result.end.message
    assert result.frames == []


@pytest.mark.parametrize("streaming", ["auto", "never"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_or_infinity_in_the_vae_is_never_published(
    zygote: ZygoteProcess, confined: bool, tmp_path: Path, value: float, streaming: str
) -> None:
    model = broken.copy("t2v", tmp_path)
    broken.fill(model, "vae", "decoder.conv_out.bias", value)
    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model, streaming=streaming)
        result = worker.generate(parameters())
        worker.kill()
    assert isinstance(result.end, m.Failed) and result.end.code == "unusable_frames", result.end
    assert result.frames == []


# ---- cancelling -----------------------------------------------------------------------------------------------------

LONG = parameters(num_inference_steps=1000)
BIG_TEXT = parameters(max_sequence_length=4096, num_inference_steps=1000)
MANY_FRAMES = parameters(frames=FrameSpec(height=128, width=192, num_frames=161), num_inference_steps=1)


def test_cancel_while_encoding_text(t2v_worker: WorkerProcess) -> None:
    t2v_worker.send(m.Generate(job=1, params=BIG_TEXT))
    t2v_worker.send(m.Cancel(job=1))
    assert t2v_worker.receive() == m.Cancelled(job=1)  # and no Progress before it


def test_cancel_while_denoising(t2v_worker: WorkerProcess) -> None:
    def cancel(progress: m.Progress) -> None:
        if progress.phase == "denoise" and progress.step == 2:
            t2v_worker.send(m.Cancel(job=1))

    result = t2v_worker.generate(LONG, on_progress=cancel)
    assert result.end == m.Cancelled(job=1)
    assert result.progress[-1].step < 500


@pytest.mark.parametrize("streaming", ["auto", "never"])
def test_cancel_while_decoding(zygote: ZygoteProcess, confined: bool, streaming: str) -> None:
    model = tiny_model("t2v")

    with zygote.spawn(model, confined=confined) as worker:
        worker.start(model, streaming=streaming)
        started: list[float] = []

        def cancel(progress: m.Progress) -> None:
            if progress.phase == "denoise" and not started:
                started.append(time.monotonic())
                time.sleep(0.2)  # now it decodes, in streaming and in whole
                worker.send(m.Cancel(job=1))

        result = worker.generate(MANY_FRAMES, on_progress=cancel)
        worker.kill()
    assert result.end == m.Cancelled(job=1)
    assert len(result.frames) < 161


def test_cancel_while_waiting_for_credit(t2v_worker: WorkerProcess) -> None:
    def cancel(progress: m.Progress) -> None:
        if progress.phase == "decode":
            time.sleep(0.3)  # four slots are full by now
            t2v_worker.send(m.Cancel(job=1))

    result = t2v_worker.generate(parameters(), on_progress=cancel, credit=False)
    assert result.end == m.Cancelled(job=1)
    assert len(result.frames) == 4


def test_cancel_of_another_job_is_ignored(t2v_worker: WorkerProcess) -> None:
    t2v_worker.send(m.Cancel(job=3))
    result = t2v_worker.generate(parameters(), on_progress=lambda _: t2v_worker.send(m.Cancel(job=2)))
    assert isinstance(result.end, m.Generated)


def test_after_a_cancelled_job_the_next_gives_its_usual_frames(t2v_worker: WorkerProcess) -> None:
    before = t2v_worker.generate(parameters(), job=1)
    cancelled = t2v_worker.generate(LONG, job=2, on_progress=lambda p: t2v_worker.send(m.Cancel(job=2)))
    after = t2v_worker.generate(parameters(), job=3)
    assert cancelled.end == m.Cancelled(job=2)
    assert np.array_equal(before.pixels, after.pixels)


def test_after_a_failed_job_the_next_gives_its_usual_frames(t2v_worker: WorkerProcess) -> None:
    before = t2v_worker.generate(parameters(), job=1)
    refused = t2v_worker.generate(parameters(frames=FrameSpec(height=64, width=96, num_frames=10)), job=2)
    after = t2v_worker.generate(parameters(), job=3)
    assert isinstance(refused.end, m.Failed)
    assert np.array_equal(before.pixels, after.pixels)


def test_a_ping_is_answered_while_a_generation_computes(t2v_worker: WorkerProcess) -> None:
    t2v_worker.send(m.Generate(job=1, params=LONG))
    answers = []
    for nonce in range(5):
        started = time.monotonic()
        t2v_worker.send(m.Ping(nonce=nonce))
        while not isinstance(message := t2v_worker.receive(), m.Pong):
            pass
        answers.append(time.monotonic() - started)
        assert message.nonce == nonce
    t2v_worker.send(m.Cancel(job=1))
    assert sorted(answers)[2] < 0.5
