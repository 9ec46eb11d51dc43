"""From a task and what was given to the class that does it: a table of models and wishes, and what is refused."""

from __future__ import annotations

import inspect

import pytest

from tests.policies.test_models import CONFIGS, FILES, INDEX, facts
from wan_compat.policies.models import decide_model
from wan_compat.policies.pipelines import PIPELINES, WAYS, ways_of
from wan_compat.policies.tasks import Wish, choose_way, media_of, wish_of
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.values import GenerationRequest

WAN = ["diffusers", "WanTransformer3DModel"]
VACE = ["diffusers", "WanVACETransformer3DModel"]
CLIP = {
    "image_encoder": ["transformers", "CLIPVisionModel"],
    "image_processor": ["transformers", "CLIPImageProcessor"],
}
CLIP_FILES = [
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
    "image_processor/preprocessor_config.json",
]
SECOND_FILES = ["transformer_2/config.json", "transformer_2/diffusion_pytorch_model.safetensors"]
IMAGE = {"in_channels": 36, "out_channels": 16}


def model(index=None, transformer=None, vae=None, files=(), two=False):
    transformer = transformer or CONFIGS["transformer"]
    configs = CONFIGS | {
        "transformer": transformer,
        "vae": vae or CONFIGS["vae"],
        "image_encoder": {"hidden_size": 1280},
    }
    given = INDEX | (index or {})
    if two:
        configs["transformer_2"] = transformer
        given = given | {"transformer_2": given["transformer"], "boundary_ratio": 0.9}
        files = [*files, *SECOND_FILES]
    return facts([*FILES, *files], given, configs)


MODELS = {
    "t2v": model(),
    "a14b": model(two=True),
    "ti2v": model(
        {"expand_timesteps": True},
        {"in_channels": 48, "out_channels": 48},
        {"z_dim": 48, "scale_factor_spatial": 16, "scale_factor_temporal": 4},
    ),
    "i2v": model({"_class_name": "WanImageToVideoPipeline"} | CLIP, IMAGE | {"image_dim": 1280}, files=CLIP_FILES),
    "flf2v": model(
        {"_class_name": "WanImageToVideoPipeline"} | CLIP,
        IMAGE | {"image_dim": 1280, "pos_embed_seq_len": 514},
        files=CLIP_FILES,
    ),
    "i2v22": model({"_class_name": "WanImageToVideoPipeline", "image_encoder": [None, None]}, IMAGE, two=True),
    "vace": model({"_class_name": "WanVACEPipeline", "transformer": VACE}),
    "vace22": model({"_class_name": "WanVACEPipeline", "transformer": VACE}, two=True),
    "named for videos": model({"_class_name": "WanVideoToVideoPipeline"}),
    "named for images": model({"_class_name": "WanImageToVideoPipeline"}),
}  # fmt: skip
T2V, I2V, V2V, VACE_CLASS = "WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline"


def decide(name, task=None, *roles, options=()):
    wish = Wish(task, roles, options)
    return decide_model(MODELS[name], threads=1, memory_limit_bytes=8 << 30, wish=wish)


@pytest.mark.parametrize(
    ("name", "task", "roles", "chosen"),
    [
        ("t2v", None, (), ("t2v", T2V)),
        ("t2v", "t2i", (), ("t2i", T2V)),
        ("t2v", None, ("video",), ("v2v", V2V)),
        ("named for videos", None, (), ("t2v", T2V)),
        ("named for images", None, (), ("t2v", T2V)),
        ("a14b", None, (), ("t2v", T2V)),
        ("ti2v", None, (), ("t2v", T2V)),
        ("ti2v", None, ("image",), ("i2v", I2V)),
        ("ti2v", "ti2v", ("image",), ("ti2v", I2V)),
        ("ti2v", "ti2v", (), ("ti2v", T2V)),
        ("i2v", None, ("image",), ("i2v", I2V)),
        ("flf2v", None, ("image", "last_image"), ("flf2v", I2V)),
        ("i2v22", None, ("image",), ("i2v", I2V)),
        ("i2v22", None, ("image", "last_image"), ("flf2v", I2V)),
        ("vace", None, (), ("t2v", VACE_CLASS)),
        ("vace", None, ("video", "mask"), ("vace", VACE_CLASS)),
        ("vace22", "vace", ("reference", "reference"), ("vace", VACE_CLASS)),
    ],
)
def test_task_and_media_choose_the_class(name, task, roles, chosen):
    decision = decide(name, task, *roles)
    assert decision.way is not None
    assert (decision.way.task, decision.pipeline.pipeline_class) == chosen
    slots = PIPELINES[decision.pipeline.pipeline_class].slots
    assert {component.name for component in decision.pipeline.components} <= set(slots)


@pytest.mark.parametrize(
    ("name", "task", "roles", "told"),
    [
        ("t2v", None, ("image",), "--image"),
        ("t2v", "i2v", ("image",), "t2v, v2v, t2i, not i2v"),
        ("t2v", "v2v", (), "v2v with /models/m needs --video"),
        ("t2v", "v2v", ("video", "mask"), "takes no --mask"),
        ("a14b", None, ("video",), "t2v from the prompt alone"),
        ("ti2v", None, ("image", "last_image"), "--last-image"),
        ("i2v", None, (), "needs --image"),
        ("i2v", None, ("image", "last_image"), "takes no --last-image"),
        ("flf2v", None, ("image",), "needs --last-image"),
        ("vace", "vace", (), "needs --video or --reference"),
        ("vace", "vace", ("reference", "mask"), "needs --video for its --mask"),
        ("vace", None, ("image",), "vace with --video or --reference"),
    ],
)
def test_wrong_media_are_refused_with_what_would_be_right(name, task, roles, told):
    with pytest.raises(InvalidRequest) as caught:
        decide(name, task, *roles)
    assert told in caught.value.message
    assert caught.value.exit_code == 2 and caught.value.fixes


def test_refusal_of_a_task_names_models_that_do_it():
    with pytest.raises(InvalidRequest) as caught:
        decide("t2v", None, "image")
    assert "Wan-AI/Wan2" in caught.value.fixes[0] and "I2V" in caught.value.fixes[0]


def test_options_that_mean_nothing_are_refused():
    assert decide("t2v", None, "video", options=("strength",)).way is not None
    assert decide("vace", None, "video", options=("conditioning_scale",)).way is not None
    with pytest.raises(InvalidRequest, match="no strength"):
        decide("t2v", options=("strength",))
    with pytest.raises(InvalidRequest, match="no conditioning_scale"):
        decide("t2v", None, "video", options=("conditioning_scale",))


def test_a_check_asks_for_no_media():
    for name, given in MODELS.items():
        decision = decide_model(given, threads=1, memory_limit_bytes=8 << 30)
        assert decision.way is not None, name


def test_low_noise_expert_alone_runs_where_every_step_is_its():
    index = {"transformer": [None, None], "transformer_2": WAN, "boundary_ratio": 1.0}
    given = facts([*FILES, *SECOND_FILES], INDEX | index, CONFIGS | {"transformer_2": CONFIGS["transformer"]})
    decision = decide_model(given, threads=1, memory_limit_bytes=8 << 30)
    assert {c.name for c in decision.pipeline.components} >= {"transformer_2"}
    assert decision.pipeline.boundary_ratio == 1.0


def test_experts_of_no_use_to_a_pipeline_are_left_out():
    """The boundary is a setting of pipelines with two experts; WanVideoToVideoPipeline has neither."""
    assert decide("t2v", None, "video").pipeline.boundary_ratio is None
    assert "expand_timesteps" in PIPELINES[I2V].settings and decide("ti2v", None, "image").pipeline.expand_timesteps


def test_wish_lists_media_in_the_order_in_which_they_travel():
    request = GenerationRequest(
        model="m", prompt="p", video="v.mp4", references=("a.png", "b.png"), mask="k.png", strength=0.5
    )
    assert media_of(request) == (("video", "v.mp4"), ("mask", "k.png"), ("reference", "a.png"), ("reference", "b.png"))
    assert wish_of(request) == Wish(None, ("video", "mask", "reference", "reference"), ("strength",))


def test_every_way_leads_to_a_known_class_and_every_class_is_reached():
    assert {way.pipeline for way in WAYS} == set(PIPELINES)
    for way in WAYS:
        assert way in ways_of(way.weights)
        assert choose_way((way,), None, "m") is way
        assert not set(way.inputs.needs) & set(way.inputs.takes)


def test_signature_of_the_decision_stays_without_a_wish():
    assert inspect.signature(decide_model).parameters["wish"].default is None
