"""What is tried next, by tables: each failure climbs its ladder, what costs least first, and stops in time."""

from __future__ import annotations

import dataclasses
import signal

import pytest

from wan_compat.policies.recovery.advice import Subject, advise
from wan_compat.policies.recovery.decision import next_step
from wan_compat.policies.recovery.ladders import PLAIN_ATTENTION, steps
from wan_compat.policies.recovery.steps import MAX_STEPS_PER_ERROR, MAX_STEPS_PER_JOB, Failure, Situation, Step, Stop
from wan_compat.protocol.errors import _by_code
from wan_compat.protocol.plan import GroupOffload, PlanSpec, Tiling
from wan_compat.protocol.values import CodeSpec, ComponentSpec, FrameSpec, Mode, PipelineSpec, RestrictedSpec

LARGE = FrameSpec(height=480, width=832, num_frames=81)


def part(name: str, class_name: str, dtype: str | None = "float32", library: str = "diffusers") -> ComponentSpec:
    return ComponentSpec(name=name, library=library, class_name=class_name, subfolder=name, dtype=dtype)


def pipeline(dtype: str = "float32", vae: str = "float32", **changes: object) -> PipelineSpec:
    parts = (
        part("transformer", "WanTransformer3DModel", dtype),
        part("text_encoder", "UMT5EncoderModel", dtype, "transformers"),
        part("vae", "AutoencoderKLWan", vae),
        part("tokenizer", "T5TokenizerFast", None, "transformers"),
    )
    return PipelineSpec(pipeline_class="WanPipeline", components=parts, threads=2).model_copy(update=changes)


GPU = pipeline("bfloat16", device="cuda")


def climb(failure: Failure, situation: Situation) -> tuple[list[Step], Stop]:
    """Fail again and again in the same way; return the steps and why they ended."""
    taken: list[Step] = []
    while not isinstance(step := next_step(failure, situation), Stop):
        taken.append(step)
        assert len(taken) <= MAX_STEPS_PER_JOB
        tried = (*situation.tried, (failure.category, step.name))
        situation = dataclasses.replace(situation, pipeline=step.pipeline, tried=tried)
    return taken, step


def names(failure: Failure, situation: Situation) -> list[str]:
    return [step.name for step in climb(failure, situation)[0]]


def failure(code: str, phase: str = "denoise", message: str = "", **more: object) -> Failure:
    return Failure(code, message, phase, **more)


MEMORY, FRAMES, OTHER = "memory_exceeded", "unusable_frames", "generation_failed"
LADDERS = {
    "a GPU that nobody asked for by name": (
        failure("gpu_unusable", "load"), Situation(GPU, LARGE, on_cpu=pipeline()), ["cpu"],
    ),
    "a GPU that was asked for": (failure("gpu_unusable", "load"), Situation(GPU, LARGE), []),
    "an error of the driver's, twice": (
        failure(OTHER, message="CUDA error: misaligned address"), Situation(GPU, LARGE, on_cpu=pipeline()),
        ["restart", "cpu"],
    ),
    "memory while denoising on a CPU": (
        failure(MEMORY), Situation(pipeline(), LARGE), ["text_encoder_leaves", "weights_in_files", "bfloat16"],
    ),
    "memory while denoising on a GPU": (
        failure(MEMORY), Situation(GPU, LARGE), ["text_encoder_leaves", "offload_model", "offload_group"],
    ),
    "memory with models that come and go already": (
        failure(MEMORY), Situation(GPU.model_copy(update={"plan": PlanSpec(offload="model", text_encoder="leave")}), LARGE),
        ["offload_group", "offload_sequential"],
    ),
    "memory while decoding, worker alive": (
        failure(MEMORY, "decode"), Situation(pipeline(), LARGE, latents=True),
        ["decode_tiles_256", "decode_tiles_128", "decode_tiles_64"],
    ),
    "memory while decoding, worker killed": (
        failure(MEMORY, "decode"), Situation(pipeline(streaming="never"), LARGE), ["tiles_256", "tiles_128", "tiles_64"],
    ),
    "memory with precision asked for": (
        failure(MEMORY), Situation(pipeline(), LARGE, frozenset({"precision"})), ["text_encoder_leaves", "weights_in_files"],
    ),
    "memory with everything asked for": (
        failure(MEMORY, "decode"), Situation(pipeline(), LARGE, frozenset({"precision", "offload", "vae_tiling"})), [],
    ),
    "NaN in float16": (
        failure(FRAMES), Situation(pipeline("float16", device="cuda"), LARGE),
        ["plain_attention", "widen_bfloat16", "widen_float32"],
    ),
    "NaN in float32": (failure(FRAMES), Situation(pipeline(), LARGE), ["plain_attention"]),
    "NaN with layers in 8 bits": (
        failure(FRAMES), Situation(pipeline(plan=PlanSpec(layerwise_casting="float8_e4m3fn")), LARGE),
        ["uncast", "plain_attention"],
    ),
    "NaN with layers in 8 bits that were asked for": (
        failure(FRAMES), Situation(
            pipeline(plan=PlanSpec(layerwise_casting="float8_e4m3fn")), LARGE, frozenset({"layerwise_casting"})
        ),
        ["plain_attention"],
    ),
    "memory with layers in 8 bits, which cannot stay in files": (
        failure(MEMORY), Situation(pipeline(plan=PlanSpec(layerwise_casting="float8_e4m3fn")), LARGE),
        ["text_encoder_leaves", "bfloat16"],
    ),
    "NaN while decoding in bfloat16": (
        failure(FRAMES, "decode"), Situation(pipeline("bfloat16", "bfloat16"), LARGE, latents=True),
        ["decode_float32", "decode_default_conv", "plain_attention"],
    ),
    "decoding fails": (
        failure(OTHER, "decode"), Situation(pipeline("bfloat16", "bfloat16"), LARGE, latents=True),
        ["decode_whole", "decode_float32", "decode_default_conv"],
    ),
    "decoding fails and nothing is kept": (failure(OTHER, "decode"), Situation(pipeline(), LARGE), ["again"]),
    "types that do not match": (
        failure(OTHER, message="RuntimeError: mat1 and mat2 must have the same dtype, but got Float and BFloat16"),
        Situation(pipeline("bfloat16"), LARGE), ["float32"],
    ),
    "no kernel for attention": (
        failure(OTHER, message="RuntimeError: No available kernel. Aborting execution."),
        Situation(GPU, LARGE), ["plain_attention"],
    ),
    "a GPU that lost its mind": (
        failure(OTHER, message="RuntimeError: CUDA error: an illegal memory access was encountered"),
        Situation(GPU, LARGE), ["restart"],
    ),
    "an error that nobody knows": (failure(OTHER, message="KeyError: 'x'"), Situation(pipeline(), LARGE), []),
    "an attention backend of the plan that is not there": (
        failure("model_not_compatible", "load", "the attention backend 'sage' cannot be used: no module sageattention"),
        Situation(pipeline(plan=PlanSpec(attention_backend="sage")), LARGE), ["attention_default"],
    ),
    "one that the user asked for": (
        failure("model_not_compatible", "load", "the attention backend 'sage' cannot be used: no module sageattention"),
        Situation(pipeline(plan=PlanSpec(attention_backend="sage")), LARGE, frozenset({"attention_backend"})), [],
    ),
    "groups that cannot be offloaded": (
        failure("model_not_compatible", "load", "transformer cannot be offloaded in groups: ..."),
        Situation(GPU.model_copy(update={"plan": PlanSpec(offload="group", group=GroupOffload())}), LARGE), ["offload_model"],
    ),
    "killed": (
        failure("worker_died", signal=int(signal.SIGKILL)), Situation(pipeline(), LARGE),
        ["restart_1", "text_encoder_leaves", "restart_3"],
    ),
    "crashed": (
        failure("worker_died", signal=int(signal.SIGSEGV)), Situation(pipeline(), LARGE),
        ["restart_1", "plain_kernels", "restart_3"],
    ),
    "silent": (failure("worker_silent"), Situation(pipeline(), LARGE), ["restart_1"]),
    "stalled": (failure("worker_stalled"), Situation(pipeline(), LARGE), ["restart_1"]),
    "cannot be started": (failure("worker_start_failed", "start_worker"), Situation(pipeline(), LARGE), ["restart_1"]),
    "encoder died": (failure("encoding_failed", "encode"), Situation(pipeline(), LARGE, latents=True), ["decode_again"]),
    "encoder died, worker too": (failure("encoding_failed", "encode"), Situation(pipeline(), LARGE), []),
    "frames are kept": (failure("encoding_failed", "encode", kept=True), Situation(pipeline(), LARGE, latents=True), []),
    "decoding for longer than anything takes": (
        failure("phase_timeout", "decode"), Situation(pipeline("bfloat16", "bfloat16"), LARGE, latents=True),
        ["decode_tiles_256", "decode_tiles_128", "decode_tiles_64"],
    ),
    "the same, and nothing is kept": (failure("phase_timeout", "decode"), Situation(pipeline(), LARGE), []),
    "longer than the user allows": (
        failure("phase_timeout", "decode", wanted=True), Situation(pipeline(), LARGE, latents=True), [],
    ),
    "broken weights": (failure(FRAMES, component="vae"), Situation(pipeline(), LARGE, latents=True), []),
}  # fmt: skip


@pytest.mark.parametrize("name", LADDERS)
def test_a_failure_climbs_its_ladder(name):
    what, situation, expected = LADDERS[name]
    assert names(what, situation) == expected


# Whatever is the user's, the policy's or an attacker's doing is not tried again.
FINAL = sorted(
    {code for code in _by_code if "fail" not in code}
    - {MEMORY, FRAMES, "model_not_compatible", "worker_died", "worker_silent", "worker_stalled"}
)


@pytest.mark.parametrize("code", FINAL)
def test_refusals_violations_and_wishes_are_final(code):
    assert isinstance(next_step(failure(code), Situation(pipeline(), LARGE, latents=True)), Stop)


def test_a_job_has_an_end_whatever_fails_next():
    situation = Situation(GPU, LARGE, latents=True)
    kinds = [failure(MEMORY), failure(FRAMES, "decode"), failure("worker_died", signal=9), failure(OTHER, "decode")]
    taken = 0
    for turn in range(40):
        step = next_step(kinds[turn % len(kinds)], situation)
        if isinstance(step, Stop):
            continue
        taken += 1
        tried = (*situation.tried, (kinds[turn % len(kinds)].category, step.name))
        situation = dataclasses.replace(situation, pipeline=step.pipeline, tried=tried)
    assert taken == MAX_STEPS_PER_JOB
    assert all(situation.times(kind.category) <= MAX_STEPS_PER_ERROR for kind in kinds)


def test_restarts_wait_longer_each_time():
    taken, _ = climb(failure("worker_died", "start_worker"), Situation(pipeline(), LARGE))
    assert [step.delay_s for step in taken] == [0.5, 1.0, 2.0]


SITUATIONS = [
    Situation(spec, LARGE, latents=latents)
    for spec in (
        pipeline(), GPU, pipeline("float16", "float16", device="cuda"), pipeline(plan=PlanSpec(tiling=Tiling())),
        pipeline(code=CodeSpec(module="pipeline.py", class_name="Own")),
        pipeline(restricted=RestrictedSpec(module="a.py", function="make", files={"a.py": "0" * 64})),
    )
    for latents in (True, False)
]  # fmt: skip
FAILURES = [entry[0] for entry in LADDERS.values()]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_no_step_changes_what_may_run(situation):
    """Code, classes, device, sources and the sandbox are no matter of recovery; what remains is plan and precision."""
    allowed = {"plan", "components", "conv3d", "streaming"}
    for what in FAILURES:
        for step in steps(what, situation):
            before, after = situation.pipeline, step.pipeline
            assert {
                name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)
            } <= allowed
            assert [item.model_copy(update={"dtype": None}) for item in after.components] == [
                item.model_copy(update={"dtype": None}) for item in before.components
            ]
            if situation.pipeline.code is not None:
                assert after.plan == PlanSpec()  # it runs as it is
            if step.kind == "decode":
                assert situation.latents and step.decoding is not None and after == before
            assert PipelineSpec.model_validate(after.model_dump()) == after


def test_what_changes_pixels_visibly_says_so():
    for situation in SITUATIONS:
        for what in FAILURES:
            for step in steps(what, situation):
                kept = [item.dtype for item in step.pipeline.components]
                changes = kept != [item.dtype for item in situation.pipeline.components]
                changes |= step.decoding is not None and bool(step.decoding.dtype or step.decoding.tiling)
                changes |= step.pipeline.plan.tiling != situation.pipeline.plan.tiling
                assert step.changes_pixels == changes, step.name


def test_plain_attention_is_one_of_diffusers_names():
    assert PlanSpec(attention_backend=PLAIN_ATTENTION).attention_backend == "_native_math"


@pytest.mark.parametrize("code", sorted(_by_code))
def test_advice_never_turns_code_on(code):
    subject = Subject("org/model; rm -rf /", "org/model", alternatives=("Wan-AI/Wan2.1-T2V-1.3B-Diffusers",))
    for message in ("", "model_index.json is broken", "the weights of vae"):
        for text in advise(code, message, subject):
            assert "remote-code" not in text and f"--mode {Mode.TRUST.value}" not in text and "--min-tier" not in text
            assert "; rm" not in text.replace("'org/model; rm -rf /'", "")
