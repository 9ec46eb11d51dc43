"""Parts loaded one by one in real workers; a report that shows it; and attempts without a process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.faults.models import index, nan_weights, pickled
from wan_compat.policies.recovery.advice import Subject
from wan_compat.protocol.errors import (
    GenerationFailed,
    InvalidRequest,
    MemoryExceeded,
    ModelCorrupt,
    ModelNotCompatible,
    ModelNotFound,
    UnusableFrames,
)
from wan_compat.protocol.values import ComponentSpec, FrameSpec, GenerationRequest, PipelineSpec
from wan_compat.supervisor import FallbackHandler
from wan_compat.supervisor.attempts import Attempts, add_advice, failure_of, fixed_by
from wan_compat.supervisor.check import check_model
from wan_compat.supervisor.diagnostics import diagnostics_of, with_fallback


def test_each_part_is_judged_by_itself_and_reported(tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model("t2v"), tmp_path / "model"))
    nan_weights(model)
    pickled(model)
    index(model, text_encoder=["my_encoder", "MyEncoder"])
    report = check_model(model)
    diagnostics = with_fallback(diagnostics_of(report), report, str(model))
    parts = {part["name"]: part for part in diagnostics.fallback["parts"]}
    assert {name for name, part in parts.items() if part["usable"]} == {"scheduler", "tokenizer"}
    assert "NaN" in parts["transformer"]["reason"] and "attn1.to_q" in parts["transformer"]["reason"]
    assert "pickle" in parts["vae"]["reason"]
    assert "repository's own" in parts["text_encoder"]["reason"]
    assert json.loads(diagnostics.to_json())["fallback"]["parts"]


def test_alternatives_come_from_the_registry() -> None:
    assert all(model.reason for model in FallbackHandler().suggest_alternative_models("wan_t2v"))


def test_nothing_there_is_an_error() -> None:
    with pytest.raises(ModelNotFound):
        FallbackHandler().attempt_component_isolation("/nowhere/at/all")


def test_what_a_user_named_is_fixed() -> None:
    plain = GenerationRequest(model="m", prompt="p")
    assert fixed_by(plain) == frozenset()
    named = GenerationRequest(
        model="m",
        prompt="p",
        precision="float32",
        offload="none",
        vae_tiling=False,
        attention_backend="native",
        layerwise_casting="float8_e4m3fn",
    )
    assert fixed_by(named) == {"precision", "offload", "vae_tiling", "attention_backend", "layerwise_casting"}


def test_what_stands_in_the_way_is_named() -> None:
    request = GenerationRequest(model="m", prompt="p", attention_backend="native")
    parts = (ComponentSpec(name="vae", library="diffusers", class_name="AutoencoderKLWan", subfolder="vae"),)
    pipeline = PipelineSpec(pipeline_class="WanPipeline", components=parts, threads=1)
    attempts = Attempts(request, FrameSpec(height=64, width=96, num_frames=9), lambda _: None, [])
    with pytest.raises(UnusableFrames) as caught:
        attempts.after(UnusableFrames("NaN"), "denoise", pipeline, latents=False)
    assert caught.value.fixes == ("leave --attention-backend out: what was asked for by name is not changed",)


def test_a_step_that_is_impossible_here_is_not_the_end() -> None:
    parts = tuple(
        ComponentSpec(name=name, library="diffusers", class_name="X", subfolder=name, dtype="float32")
        for name in ("transformer", "text_encoder", "vae")
    )
    pipeline = PipelineSpec(pipeline_class="WanPipeline", components=parts, threads=1)
    frames, entries = FrameSpec(height=64, width=96, num_frames=9), []
    attempts = Attempts(GenerationRequest(model="m", prompt="p"), frames, lambda _: None, entries)
    memory = MemoryExceeded("no more")
    first = attempts.after(memory, "denoise", pipeline, latents=False)
    assert first.name == "text_encoder_leaves"
    impossible = ModelNotCompatible("the text encoder of a WanPipeline cannot leave memory")
    second = attempts.after(impossible, "load", first.pipeline, latents=False)
    assert second.name == "weights_in_files"
    third = attempts.after(ModelNotCompatible("a LoRA is in the way"), "load", second.pipeline, latents=False)
    assert third.name == "bfloat16" and third.pipeline.plan == pipeline.plan  # nothing is built on what was impossible
    with pytest.raises(MemoryExceeded) as caught:
        attempts.after(ModelNotCompatible("and this"), "load", third.pipeline, latents=False)
    assert caught.value is memory and len(entries) == 3


def test_latents_that_were_not_kept_lead_to_another_generation() -> None:
    parts = (ComponentSpec(name="transformer", library="diffusers", class_name="X", subfolder="t", dtype="float32"),)
    pipeline = PipelineSpec(pipeline_class="WanPipeline", components=parts, threads=1)
    frames = FrameSpec(height=64, width=96, num_frames=9)
    attempts = Attempts(GenerationRequest(model="m", prompt="p"), frames, lambda _: None, [])
    assert attempts.after(UnusableFrames("NaN"), "decode", pipeline, latents=True).kind == "decode"
    nothing = GenerationFailed("there are no latents to decode again")
    assert attempts.after(nothing, "decode", pipeline, latents=True).name == "plain_attention"


def test_a_failure_takes_from_an_error_what_decides() -> None:
    error = UnusableFrames("the weights of vae are NaN", details={"component": "vae"})
    assert failure_of(error, "decode").category == "none"
    assert failure_of(UnusableFrames("NaN"), "decode").category == "frames"


def test_advice_comes_behind_the_errors_own_and_once() -> None:
    error = ModelCorrupt("model_index.json is damaged", hint="look at it")
    for _ in range(2):
        add_advice(error, Subject("folder"))
    assert error.fixes[0] == "look at it" and "--repair" in error.fixes[1] and len(error.fixes) == 3
    other = InvalidRequest("width is 3")
    add_advice(other, Subject("folder"))
    assert other.fixes == ()
