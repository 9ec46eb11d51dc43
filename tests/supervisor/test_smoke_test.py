"""SmokeTestRunner on stand-ins for pipelines: what it calls them with, and what it makes of what they do."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wan_compat.protocol.errors import InvalidRequest, JobCancelled
from wan_compat.supervisor.smoke_media import moving_ball, smoke_media, y4m
from wan_compat.supervisor.smoke_test import SmokeTestRunner

CLIP = moving_ball(5, 64, 96)


class Pipeline:
    """Called like one of diffusers; `frames` is what it gives."""

    def __init__(self, frames: Any = CLIP / 255.0) -> None:
        self.frames, self.calls = frames, []

    def __call__(self, prompt: str, height: int, width: int, num_inference_steps: int, output_type: str) -> Any:
        self.calls.append((prompt, height, width, num_inference_steps, output_type))
        return types.SimpleNamespace(frames=self.frames)


def test_a_pipeline_of_diffusers_is_called_with_what_its_call_takes():
    pipeline = Pipeline()
    result = SmokeTestRunner("a cat").run_pipeline_smoke_test(pipeline)
    assert result.success and not result.errors and not result.warnings, result
    assert result.output_shape == (5, 64, 96, 3) and result.memory_peak > 1 << 20 and result.generation_time >= 0
    assert pipeline.calls == [("a cat", 64, 96, 2, "np")]


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.full((5, 64, 96, 3), np.nan), "NaN"),
        (np.zeros((5, 64, 96, 3)), "black"),
        (np.full((5, 64, 96, 3), 0.5), "one colour"),
        (CLIP[:3] / 255.0, "3x64x96x3, 5x64x96x3 was asked for"),
        (np.zeros((16, 2, 8, 12)), "latents"),
        (np.full((5, 64, 96, 3), 7.0), "instead of 0 to 1"),
        (None, "is no frame"),
    ],
    ids=["nan", "black", "grey", "short", "latents", "range", "nothing"],
)
def test_frames_that_are_no_video_fail_the_test_with_their_cause(frames, said):
    result = SmokeTestRunner().run_pipeline_smoke_test(Pipeline(frames))
    assert not result.success and any(said in error for error in result.errors), result


def test_one_black_frame_among_good_ones_is_found():
    clip = CLIP.copy()
    clip[3] = 0
    assert not SmokeTestRunner().validate_output_format(clip).is_valid


def test_an_error_of_the_pipeline_is_an_answer_and_a_cancel_is_none():
    def fails(**_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def cancelled(**_: Any) -> Any:
        raise JobCancelled("cancelled")

    result = SmokeTestRunner().run_pipeline_smoke_test(fails)
    assert not result.success and "mat1 and mat2" in result.errors[0]
    with pytest.raises(JobCancelled):
        SmokeTestRunner().run_pipeline_smoke_test(cancelled)


def test_a_later_run_that_fails_is_told_with_how_many_went_well():
    class Once(Pipeline):
        def __call__(self, **arguments: Any) -> Any:
            if self.calls:
                raise RuntimeError("out of luck")
            self.calls.append(arguments)
            return self.frames

    found = SmokeTestRunner().examine(Once(), runs=3)
    assert len(found.runs) == 1 and found.smoke.errors == ["after 1 runs: RuntimeError: out of luck"]


@pytest.mark.parametrize(
    ("output", "valid", "shape"),
    [
        (CLIP, True, (5, 64, 96, 3)),
        (types.SimpleNamespace(frames=[CLIP[0], CLIP[1]]), True, (2, 64, 96, 3)),
        (np.zeros((5, 64, 96, 3), np.uint8), False, (5, 64, 96, 3)),
        (np.zeros((7, 7)), False, (7, 7)),
        ("no frames", False, ()),
    ],
    ids=["array", "list", "black", "flat", "text"],
)
def test_an_output_is_validated_without_a_pipeline(output, valid, shape):
    validation = SmokeTestRunner().validate_output_format(output)
    assert validation.is_valid is valid and validation.shape == shape and bool(validation.errors) is not valid


def test_a_pipeline_that_keeps_what_it_made_leaks_and_one_that_does_not_does_not():
    kept = []

    class Leaking(Pipeline):
        def __call__(self, **_: Any) -> Any:
            kept.append(np.ones(40 << 20, np.uint8))
            return self.frames

    leaking = SmokeTestRunner().test_memory_usage(Leaking(), runs=5)
    assert leaking.leaks and leaking.leak_mb == pytest.approx(42, rel=0.2), leaking
    assert len(leaking.samples) == 5 and leaking.peak_mb >= leaking.after_mb
    kept.clear()
    sound = SmokeTestRunner().test_memory_usage(Pipeline(), runs=5)
    assert not sound.leaks, sound


def test_a_benchmark_times_runs_after_one_that_warms_up():
    pipeline = Pipeline()
    result = SmokeTestRunner().benchmark_generation_speed(pipeline, runs=2)
    assert len(pipeline.calls) == 3
    assert result.frames_per_second == pytest.approx(5 / result.seconds)
    assert result.seconds_per_step == pytest.approx(result.seconds / 2)


def test_frames_that_differ_for_one_seed_are_remarked():
    class Random(Pipeline):
        def __call__(self, **_: Any) -> Any:
            self.calls.append(())
            return moving_ball(5, 64, 96, offset=len(self.calls))

    found = SmokeTestRunner().examine(Random(), runs=2)
    assert found.smoke.success and any("the same seed" in warning for warning in found.smoke.warnings)


@pytest.mark.parametrize("runs", [0, 101])
def test_the_number_of_runs_is_bounded(runs: int):
    with pytest.raises(InvalidRequest, match="1 to 100"):
        SmokeTestRunner().test_memory_usage(Pipeline(), runs=runs)


def test_what_is_no_pipeline_is_named():
    result = SmokeTestRunner().run_pipeline_smoke_test(7)
    assert not result.success and "a int neither generates nor can be called" in result.errors[0]


def test_media_are_made_up_for_each_role_and_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with smoke_media(("image", "last_image", "video", "reference"), 96, 64, 5) as fields:
        assert sorted(fields) == ["image", "last_image", "references", "video"]
        paths = [fields["image"], fields["last_image"], fields["video"], *fields["references"]]
        content = [Path(path).read_bytes() for path in paths]
        assert content[0] != content[1], "a first and a last picture differ"
        assert content[2].startswith(b"YUV4MPEG2 W96 H64 ") and content[2].count(b"FRAME\n") == 5
    assert not list(tmp_path.iterdir())
    with smoke_media((), 96, 64, 5) as fields:
        assert fields == {}


def test_a_made_up_video_decodes_to_what_was_drawn(tmp_path):
    import av

    (tmp_path / "clip.y4m").write_bytes(y4m(CLIP))
    with av.open(str(tmp_path / "clip.y4m")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == CLIP.shape and np.abs(decoded.astype(int) - CLIP).mean() < 3
