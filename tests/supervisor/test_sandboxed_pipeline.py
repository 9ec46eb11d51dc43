"""A sandboxed pipeline is called as diffusers' own, and says so where it cannot do the same. Workers without torch."""

from __future__ import annotations

import gc
import inspect
import json
import os
import shutil
import sys
import tempfile
import weakref

import numpy as np
import PIL.Image
import pytest

from tests import contract
from tests.assets.tiny_wan import tiny_model
from wan_compat import SandboxedPipeline, connect
from wan_compat.policies import drop_in
from wan_compat.protocol import errors
from wan_compat.protocol.errors import InvalidRequest, PipelineFeatureMissing
from wan_compat.supervisor.audit_log import AuditLog
from wan_compat.supervisor.installed import find_package

SIZE = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2}


@pytest.fixture
def pipe(misbehaving):
    return SandboxedPipeline.from_pretrained(tiny_model("t2v"), supervisor=misbehaving("well"))


@pytest.fixture
def asked(pipe, monkeypatch):
    """Requests as they are submitted, instead of running them."""
    seen: list = []

    def submit(request):
        seen.append(request)
        raise errors.JobCancelled("seen")

    monkeypatch.setattr(pipe._supervisor, "submit", submit)

    def ask(**arguments):
        with pytest.raises(errors.JobCancelled):
            pipe("a", **arguments)
        return seen[-1]

    return ask


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_frames_have_the_shapes_of_diffusers_and_its_order_of_prompts(pipe):
    output = pipe(["a", "b"], num_videos_per_prompt=2, generator=[1, 2, 3, 4], **SIZE)
    assert output.frames.shape == (4, 9, 64, 96, 3) and output.frames.dtype == np.float32
    params = [result.metadata.generation_params for result in output.results]
    assert [(one["prompt"], one["seed"]) for one in params] == [("a", 1), ("a", 2), ("b", 3), ("b", 4)]
    # The worker's frames have one colour each, their number.
    assert (np.rint(output.frames[2, :, 0, 0, 0] * 255) == np.arange(9)).all()
    assert output[0] is output.frames and output["frames"] is output.frames
    document = output.results[0].to_json()
    for part in ("timings", "sandbox", "peak"):
        assert not contract.PARTS[part] - set(document[part])
    pictures, *rest = pipe("a", output_type="pil", return_dict=False, **SIZE)
    assert rest == [] and [len(video) for video in pictures] == [9]
    assert isinstance(pictures[0][8], PIL.Image.Image) and pictures[0][8].getpixel((0, 0)) == (8, 8, 8)


def test_multiplied_by_255_every_float_is_its_whole_number_again():
    from wan_compat.supervisor.pipeline_output import _floats

    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert ((_floats([every])[0] * 255).astype(np.uint8) == every).all()


def test_a_callback_hears_every_step_and_no_tensors(pipe):
    heard: list = []

    def callback(pipeline, step, timestep, tensors):
        heard.append((pipeline is pipe, step, timestep, dict(tensors)))
        return tensors

    pipe("a", callback_on_step_end=callback, **SIZE)
    assert heard == [(True, 0, None, {}), (True, 1, None, {})]  # these workers have no scheduler


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (lambda pipe, step, timestep, tensors: {"latents": tensors["latents"]}, PipelineFeatureMissing),
        (lambda pipe, step, timestep, tensors: {"latents": 0}, PipelineFeatureMissing),
        (lambda pipe, step, timestep, tensors: setattr(pipe, "_interrupt", True), PipelineFeatureMissing),
        (lambda pipe, step, timestep, tensors: 1 // 0, ZeroDivisionError),
    ],
    ids=["reads latents", "changes latents", "interrupts", "raises"],
)
def test_a_callback_that_asks_for_more_ends_the_jobs_and_the_next_call_works(callback, error, misbehaving):
    pipe = SandboxedPipeline.from_pretrained(tiny_model("t2v"), supervisor=misbehaving("slow"))
    with pytest.raises(error):
        pipe(["a", "b"], callback_on_step_end=callback, **SIZE | {"num_inference_steps": 500})
    assert pipe("a", **SIZE).frames.shape[0] == 1


def test_an_error_of_one_job_ends_the_call_with_its_code_and_brings_the_videos_before_it(misbehaving):
    pipe = SandboxedPipeline.from_pretrained(tiny_model("t2v"), supervisor=misbehaving("as-asked"))
    with pytest.raises(errors.ProtocolViolation) as caught:
        pipe(["a", "frame:skip-frame", "b"], generator=[1, 2, 3], **SIZE)
    (first,) = caught.value.finished
    assert first.metadata.generation_params["prompt"] == "a" and first.frames.frames.shape == (9, 64, 96, 3)


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_what_is_left_out_has_the_defaults_of_diffusers(asked):
    request = asked()
    assert {name: getattr(request, name) for name in drop_in.CALL_DEFAULTS} == drop_in.CALL_DEFAULTS
    assert request.seed is None and request.negative_prompt is None and request.guidance_scale_2 is None


def test_pictures_are_private_files_for_the_time_of_the_call(asked, pipe, monkeypatch):
    seen = {}

    def look(request):
        seen.update({name: os.stat(getattr(request, name)) for name in ("image", "video", "mask")})
        seen["folder"] = os.path.dirname(request.image)
        seen["mode"] = os.stat(seen["folder"]).st_mode & 0o777
        raise errors.JobCancelled("seen")

    monkeypatch.setattr(pipe._supervisor, "submit", look)
    frames = np.zeros((9, 8, 8, 3), np.uint8)
    with pytest.raises(errors.JobCancelled):
        pipe("a", image=frames[0], video=frames, mask=frames[..., 0], reference_images=[frames[0]])
    assert seen["mode"] == 0o700 and os.path.dirname(seen["folder"]) == tempfile.gettempdir()
    assert not os.path.exists(seen["folder"])


def test_a_video_given_as_frames_says_how_many_are_made(asked):
    assert asked(video=np.zeros((12, 8, 8, 3), np.uint8)).num_frames == 9
    assert asked(video=np.zeros((12, 8, 8, 3), np.uint8), num_frames=5).num_frames == 5
    assert asked(video="v.mp4").num_frames == 81


def test_switches_become_fields_of_the_requests_that_follow(pipe, asked, tmp_path):
    assert (asked().offload, asked().vae_tiling, asked().precision) == (None, None, "auto")
    pipe.enable_model_cpu_offload()
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    pipe.to("torch.bfloat16").set_progress_bar_config(disable=True)
    assert (asked().offload, asked().vae_tiling, asked().precision) == ("model", True, "bfloat16")
    pipe.enable_sequential_cpu_offload()
    pipe.vae.disable_tiling()
    assert (asked().offload, asked().vae_tiling) == ("sequential", False)
    pipe.enable_group_offload()
    assert asked().offload == "group"
    assert pipe.to("cpu") is pipe and asked().offload == "full"


def test_loras_are_laid_over_in_their_order_and_weighed(pipe, asked, tmp_path):
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="a")
    pipe.load_lora_weights(str(tmp_path / "b.safetensors"), expert="low")
    assert [(os.path.basename(one.path), one.weight, one.expert) for one in asked().loras] == [
        ("a.safetensors", 1.0, None),
        ("b.safetensors", 1.0, "low"),
    ]
    pipe.set_adapters(["a"], [0.5])
    assert [one.weight for one in asked().loras] == [0.5, 0.0]
    with pytest.raises(InvalidRequest, match="already"):
        pipe.load_lora_weights("c.safetensors", adapter_name="a")
    with pytest.raises(InvalidRequest):
        pipe.set_adapters("unknown")
    pipe.unload_lora_weights()
    assert asked().loras == ()


def test_a_gpu_that_workers_do_not_get_is_an_error_and_not_hours_on_the_processor(pipe):
    with pytest.raises(errors.EnvironmentLacks, match="processor"):
        pipe.to("cuda:0")


@pytest.mark.parametrize("name", sorted(drop_in.WITH_CALL_DEFAULTS))
def test_every_argument_of_diffusers_is_taken_or_has_an_alternative_and_defaults_are_its_own(name):
    package = find_package("diffusers")
    assert package is not None
    signature = package.signature(name)
    assert signature is not None and signature.call is not None
    taken = inspect.signature(SandboxedPipeline.__call__).parameters.keys() | drop_in.CALL_INSTEAD.keys()
    assert not {*signature.call.names} - taken
    theirs = {key: float(text) for key, text in signature.call.optional.items() if key in drop_in.CALL_DEFAULTS}
    assert theirs == {key: drop_in.CALL_DEFAULTS[key] for key in theirs} and len(theirs) >= 4


# -- what is not done --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"latents": object()},
        {"prompt_embeds": object()},
        {"attention_kwargs": {"scale": 1}},
        {"nothing_known": 1},
        {"output_type": "latent"},
        {"output_type": "pt"},  # in a program that has not imported torch
        {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latents"]},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_that_need_the_pipelines_own_objects_are_refused_with_an_alternative(pipe, arguments, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # other tests of this process may need it
    with pytest.raises(PipelineFeatureMissing) as caught:
        pipe("a", **arguments, **SIZE)
    assert caught.value.hint and caught.value.exit_code == 2


def test_arguments_that_are_none_as_in_diffusers_signature_are_nothing(asked):
    assert asked(latents=None, prompt_embeds=None, attention_kwargs=None).prompt == "a"


@pytest.mark.parametrize(
    "arguments", [{"height": 5}, {"num_frames": 0}, {"output_type": "gif"}, {"guidance_scale": "x"}]
)
def test_values_out_of_bounds_are_named(pipe, arguments):
    with pytest.raises(InvalidRequest, match=next(iter(arguments))):
        pipe("a", **SIZE | arguments)


@pytest.mark.parametrize("name", ["scheduler", "transformer", "config", "encode_prompt", "fuse_lora", "nothing_known"])
def test_objects_of_the_worker_are_no_attributes_and_cannot_be_set(pipe, name):
    with pytest.raises(PipelineFeatureMissing, match=name) as caught:
        getattr(pipe, name)
    assert caught.value.hint and not hasattr(pipe, name) and not hasattr(pipe.vae, name)
    with pytest.raises(PipelineFeatureMissing):
        setattr(pipe, name, object())
    with pytest.raises(PipelineFeatureMissing):
        setattr(pipe.vae, name, object())


@pytest.mark.parametrize(
    "arguments",
    [
        {"torch_dtype": "int8"},
        {"vae": object()},
        {"scheduler": object()},
        {"custom_pipeline": "x"},
        {"device_map": "auto"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_loading_with_objects_and_code_is_refused_with_an_alternative(arguments):
    with pytest.raises(PipelineFeatureMissing) as caught:
        SandboxedPipeline.from_pretrained(tiny_model("t2v"), **arguments)
    assert caught.value.hint


def test_a_model_that_cannot_run_is_refused_when_it_is_named(tmp_path):
    with pytest.raises(errors.ModelNotFound):
        SandboxedPipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(errors.TrustRefused):
        SandboxedPipeline.from_pretrained(tiny_model("t2v"), mode="trust")


def test_a_refusal_is_recorded_though_no_job_comes_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"_class_name": ["their_code", "TheirPipeline"]}))
    (model / "their_code.py").write_text("class TheirPipeline: pass\n")
    with pytest.raises(errors.RemoteCodeRefused):
        SandboxedPipeline.from_pretrained(model)
    assert [entry.fields["code"] for entry in AuditLog().entries()] == ["remote_code_refused"]


@pytest.mark.parametrize(
    "switch",
    [
        lambda pipe: pipe.enable_group_offload(onload_device="cuda", offload_type="leaf_level"),
        lambda pipe: pipe.enable_model_cpu_offload(gpu_id=1),
        lambda pipe: pipe.vae.enable_tiling(tile_sample_min_height=256),
        lambda pipe: pipe.load_lora_weights({"a": 1}),
        lambda pipe: pipe.to("mps"),
    ],
    ids=["groups", "gpu", "tiles", "tensors", "device"],
)
def test_switches_that_choose_what_the_plan_chooses_are_refused(pipe, switch):
    with pytest.raises(PipelineFeatureMissing) as caught:
        switch(pipe)
    assert caught.value.hint


# -- generators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", [True, "7", 1.5, -1, 2**63, [1, 2]])
def test_what_gives_no_seed_is_refused(pipe, generator):
    with pytest.raises(InvalidRequest):
        pipe("a", generator=generator, **SIZE)


# -- its end -----------------------------------------------------------------------------------------------------------


def test_its_own_supervisor_ends_with_it_and_a_given_one_does_not(misbehaving):
    given = misbehaving("well")
    with SandboxedPipeline.from_pretrained(tiny_model("t2v"), supervisor=given) as pipe:
        pass
    assert pipe("a", **SIZE).frames.shape == (1, 9, 64, 96, 3)
    with SandboxedPipeline.from_pretrained(tiny_model("t2v")) as pipe:
        pipe.close()
    with pytest.raises(InvalidRequest, match="closed"):
        pipe("a", **SIZE)
    with pytest.raises(InvalidRequest, match="the supervisor's"):
        SandboxedPipeline.from_pretrained(tiny_model("t2v"), supervisor=given, min_tier="B")


def test_a_pipeline_that_is_forgotten_closes_its_supervisor():
    pipe = SandboxedPipeline.from_pretrained(tiny_model("t2v"))
    supervisor, gone = pipe._supervisor, weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None
    with pytest.raises(InvalidRequest, match="closed"):
        supervisor.generate(model="m", prompt="p")


def test_a_served_supervisor_runs_the_jobs_of_a_pipeline_as_ones_own_does(misbehaving, tmp_path):
    served = misbehaving("well")
    served.serve(str(tmp_path / "s"))
    with connect(str(tmp_path / "s")) as remote:
        pipe = SandboxedPipeline.from_pretrained(tiny_model("t2v"), supervisor=remote)
        steps: list = []
        output = pipe("a", callback_on_step_end=lambda _pipe, step, _timestep, _tensors: steps.append(step), **SIZE)
    assert (np.rint(output.frames[0, :, 0, 0, 0] * 255) == np.arange(9)).all() and steps == [0, 1]


def test_a_class_that_a_script_names_must_be_one_in_which_the_model_runs():
    from wan_compat.supervisor import PipelineManager

    with pytest.raises(errors.ModelNotCompatible, match="WanVACEPipeline") as caught:
        PipelineManager().load_custom_pipeline(str(tiny_model("t2v")), "WanVACEPipeline")
    assert "WanVideoToVideoPipeline" in (caught.value.hint or "")
    with PipelineManager().load_custom_pipeline(str(tiny_model("t2v")), "WanVideoToVideoPipeline") as pipe:
        assert isinstance(pipe, SandboxedPipeline)
