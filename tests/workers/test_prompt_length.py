"""What a tokenizer cuts off a prompt is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from wan_compat.protocol.values import FrameSpec, GenerationParams
from wan_compat.workers.prompt_length import describe_cut

FRAMES = FrameSpec(num_frames=5, height=64, width=64)


def words(text: str, **_: Any) -> dict[str, list[int]]:
    return {"input_ids": [1] * len(text.split())}


def params(**fields: Any) -> GenerationParams:
    given: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5, "seed": 1, "frames": FRAMES, "task": "t2v"}
    return GenerationParams(**given | fields)


def test_each_text_of_which_the_end_was_not_read_is_named() -> None:
    pipeline = SimpleNamespace(tokenizer=words)
    assert describe_cut(pipeline, params(prompt="fox " * 512)) == ()
    asked = params(prompt="fox " * 513, negative_prompt="blurred " * 600)
    assert describe_cut(pipeline, asked) == (
        "the prompt has 513 tokens, and the model read the first 512",
        "the negative prompt has 600 tokens, and the model read the first 512",
    )
    assert len(describe_cut(pipeline, params(prompt="a red fox", max_sequence_length=2))) == 1


def test_a_pipeline_without_a_tokenizer_or_with_one_that_fails_costs_no_remark_and_no_video() -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such word")

    for pipeline in (SimpleNamespace(), SimpleNamespace(tokenizer=None), SimpleNamespace(tokenizer=fails)):
        assert describe_cut(pipeline, params(prompt="fox " * 600)) == ()
