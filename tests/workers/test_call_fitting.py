"""Pipelines that take other arguments than ours: what is passed, renamed, left out and filled in, and that it is told."""

from __future__ import annotations

from typing import Any

from tests.workers.inside import in_torch_process

OURS = ("prompt", "negative_prompt", "height", "width", "num_frames", "guidance_scale", "generator", "output_type")


def fitted(taken: str, wanted: str = "", given: tuple[str, ...] = OURS) -> tuple[dict[str, Any], tuple[str, ...]]:
    from wan_compat.protocol.values import FrameSpec, GenerationParams
    from wan_compat.workers.call_fitting import fit_call

    frames = FrameSpec(height=64, width=96, num_frames=9)
    params = GenerationParams(
        prompt="x", negative_prompt="", seed=7, num_inference_steps=2, guidance_scale=1.0, frames=frames
    )
    call = {name: f"the {name}" for name in given}
    return fit_call(call, frozenset(taken.split()), wanted.split(), params, "cpu")


@in_torch_process
def test_what_is_taken_is_passed_as_it_is_and_nothing_is_told() -> None:
    call, told = fitted(" ".join(OURS), "prompt")
    assert call == {name: f"the {name}" for name in OURS} and told == ()


@in_torch_process
def test_other_names_of_the_same_are_used_and_told() -> None:
    call, told = fitted("input_prompt n_prompt height width frame_num guide_scale seed", "input_prompt")
    assert call == {
        "input_prompt": "the prompt", "n_prompt": "the negative_prompt", "height": "the height", "width": "the width",
        "frame_num": "the num_frames", "guide_scale": "the guidance_scale", "seed": 7,
    }  # fmt: skip
    assert len(told) == 5 and all(" is passed as " in line for line in told)


@in_torch_process
def test_what_is_not_taken_is_left_out_and_told_where_it_counts() -> None:
    call, told = fitted("prompt height width num_frames")
    assert set(call) == {"prompt", "height", "width", "num_frames"}
    assert [line.split()[4].rstrip(":") for line in told] == ["negative_prompt", "guidance_scale", "generator"]


@in_torch_process
def test_a_pipeline_that_takes_anything_gets_everything_by_its_own_names() -> None:
    call, told = fitted("prompt frame_num **")
    assert set(call) == {*OURS, "frame_num"} - {"num_frames"} and told == ("num_frames is passed as frame_num",)


@in_torch_process
def test_only_what_can_mean_one_thing_is_filled_in() -> None:
    call, told = fitted(" ".join((*OURS, "batch_size", "device", "camera")), "prompt batch_size device camera")
    assert call["batch_size"] == 1 and str(call["device"]) == "cpu" and "camera" not in call and len(told) == 2


@in_torch_process
def test_nothing_given_is_overwritten_and_there_is_never_more_told_than_a_message_holds() -> None:
    call, _ = fitted("prompt text", given=("prompt",))
    assert call == {"prompt": "the prompt"}
    _, told = fitted("prompt", given=("prompt", *(f"option_{number}" for number in range(40))))
    assert len(told) == 16


@in_torch_process
def test_what_a_call_passes_in_no_form_is_named() -> None:
    from wan_compat.workers.call_fitting import lacking

    call, _ = fitted("input_prompt height num_frames")
    assert lacking(call, ("height", "width", "prompt")) == ("width",)
    call, _ = fitted("height width num_frames")
    assert lacking(call, ("height", "width", "prompt")) == ("prompt",)
