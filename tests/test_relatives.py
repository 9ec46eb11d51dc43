"""Animate and Wan's relatives through real workers: the bytes of a plain script, and what is refused before loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.assets.plain_cases import SIZE, TEXT, Case, assert_equal, run, run_plain, with_another_gamma, write_media
from tests.assets.tiny_wan import tiny_model, tiny_models
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import InvalidRequest

IMAGE = {"image": ("image", None, "RGB")}
DRIVEN = {"image": "image", "pose_video": "video", "face_video": "face"}
PLAIN_DRIVEN = {**IMAGE, "pose_video": ("video", 9, "RGB"), "face_video": ("face", 9, "RGB")}
PYRAMID = {"width": 128, "num_inference_steps": 3}
LEFT = {"num_frames": None}
_DF = "SkyReelsV2DiffusionForcing{}Pipeline"
CASES = {
    "animate": Case(
        "animate", "WanAnimatePipeline", DRIVEN, plain=LEFT | {"segment_frame_length": 9}, plain_media=PLAIN_DRIVEN
    ),
    "replace": Case(
        "animate",
        "WanAnimatePipeline",
        DRIVEN | {"background_video": "video", "mask": "mask"},
        plain=LEFT | {"segment_frame_length": 9, "mode": "replace"},
        plain_media=PLAIN_DRIVEN | {"background_video": ("video", 9, "RGB"), "mask_video": ("mask", 9, "L")},
    ),
    # Two segments of 77 frames, the second one padded: 1 + 76 + 4.
    "animate in segments": Case(
        "animate",
        "WanAnimatePipeline",
        DRIVEN,
        {"num_frames": 81, "num_inference_steps": 1, "guidance_scale": 1.0},
        plain=LEFT | {"segment_frame_length": 77},
        plain_media=IMAGE | {"pose_video": ("video", 81, "RGB"), "face_video": ("face", 81, "RGB")},
    ),
    "skyreels": Case("skyreels", "SkyReelsV2Pipeline"),
    "skyreels i2v": Case("skyreels_i2v", "SkyReelsV2ImageToVideoPipeline", {"image": "image"}, plain_media=IMAGE),
    "skyreels df": Case("skyreels_df", _DF.format("")),
    # Two clips of up to 97 frames, the second beginning with 17 of the first.
    "skyreels df long": Case(
        "skyreels_df",
        _DF.format(""),
        fields={"num_frames": 101, "num_inference_steps": 1, "guidance_scale": 1.0},
        plain={"overlap_history": 17},
    ),
    "skyreels df i2v": Case("skyreels_df", _DF.format("ImageToVideo"), {"image": "image"}, plain_media=IMAGE),
    "skyreels df v2v": Case(
        "skyreels_df",
        _DF.format("VideoToVideo"),
        {"video": "video"},
        {"num_frames": 21},
        plain={"overlap_history": 17, "base_num_frames": 21},
        plain_media={"video": ("video", -17, "RGB")},
        frames=(17, None),
    ),
    "chronoedit": Case("chronoedit", "ChronoEditPipeline", {"image": "image"}, {"num_frames": 5}, plain_media=IMAGE),
    "chronoedit with the way": Case(
        "chronoedit",
        "ChronoEditPipeline",
        {"image": "image"},
        {"num_frames": 13},
        plain={"enable_temporal_reasoning": True, "num_temporal_reasoning_steps": 2},
        plain_media=IMAGE,
    ),
    "lucy": Case("lucy", "LucyEditPipeline", {"video": "video"}, plain_media={"video": ("video", 9, "RGB")}),
    "anyflow": Case("anyflow", "AnyFlowPipeline"),
    "anyflow i2v": Case(
        "anyflow", "AnyFlowPipeline", {"image": "image"}, plain_media={"video": ("image", "tensor", "RGB")}
    ),
    "anyflow v2v": Case(
        "anyflow",
        "AnyFlowPipeline",
        {"video": "video"},
        {"num_frames": 17},
        plain_media={"video": ("video", [13], "RGB")},
    ),
    "anyflow far": Case("anyflow_far", "AnyFlowFARPipeline", fields={"num_frames": 21}, steps=6),
    "anyflow far, fewer chunks, i2v": Case(
        "anyflow_far",
        "AnyFlowFARPipeline",
        {"image": "image"},
        {"num_frames": 13},
        plain={"chunk_partition": [1, 3]},
        plain_media={"video": ("image", "tensor", "RGB")},
    ),
    "anyflow far v2v": Case(
        "anyflow_far",
        "AnyFlowFARPipeline",
        {"video": "video"},
        {"num_frames": 21},
        plain_media={"video": ("video", [13], "RGB")},
    ),
    "helios": Case("helios", "HeliosPipeline", frames=(0, 9)),
    # Two chunks of 33 frames.
    "helios in chunks": Case("helios", "HeliosPipeline", fields={"num_frames": 41}, frames=(0, 41), steps=4),
    "helios i2v": Case("helios", "HeliosPipeline", {"image": "image"}, plain_media=IMAGE, frames=(0, 9)),
    "helios v2v": Case(
        "helios",
        "HeliosPipeline",
        {"video": "video"},
        plain_media={"video": ("video", -85, "RGB")},
        frames=(0, 9),
    ),
    "helios pyramid": Case(
        "helios_pyramid",
        "HeliosPyramidPipeline",
        fields=PYRAMID,
        plain={"num_inference_steps": None, "pyramid_num_inference_steps_list": [1, 1, 1]},
        frames=(0, 9),
        steps=3,
    ),
    "helios distilled": Case(
        "helios_distilled",
        "HeliosPyramidPipeline",
        fields=PYRAMID | {"guidance_scale": 1.0},
        plain={
            "num_inference_steps": None,
            "pyramid_num_inference_steps_list": [1, 1, 1],
            "is_amplify_first_chunk": True,
        },
        frames=(0, 9),
        steps=6,
    ),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of each kind; of Helios' pyramids, a copy that diffusers does not fail with."""
    found = tiny_models({case.kind for case in CASES.values()})
    for kind in ("helios_pyramid", "helios_distilled"):
        found[kind] = with_another_gamma(found[kind], tmp_path_factory.mktemp("models") / kind)
    return found


@pytest.fixture(scope="module")
def plain(models: dict[str, Path], media: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the frames of each case, made by one plain script."""
    folder = tmp_path_factory.mktemp("plain")
    run_plain(CASES, models, media, folder)
    return folder


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_frames_equal_a_plain_diffusers_script_byte_for_byte(
    name: str, supervisor: Supervisor, models: dict[str, Path], media: dict[str, str], plain: Path
) -> None:
    case = CASES[name]
    result, steps = run(supervisor, case, models[case.kind], media)
    assert_equal(case, result, steps, plain / f"{name}.npy")


def test_noise_of_helios_pyramid_is_drawn_on_a_cpu_where_diffusers_fails(supervisor: Supervisor) -> None:
    request = {**SIZE, "num_frames": 9, **TEXT, **PYRAMID}
    result = supervisor.generate(GenerationRequest(model=str(tiny_model("helios_pyramid")), **request))
    assert result.frames is not None and result.frames.frames.std() > 5


@pytest.mark.parametrize(
    ("kind", "media_names", "fields", "part"),
    [
        ("animate", {"image": "image", "pose_video": "video"}, {}, "needs --face-video"),
        ("animate", {}, {}, "needs --image, --pose-video, --face-video"),
        ("animate", DRIVEN | {"mask": "mask"}, {}, "needs --background-video for its --mask"),
        ("animate", DRIVEN | {"background_video": "video"}, {}, "needs --mask for its --background-video"),
        ("animate", DRIVEN, {"num_frames": 1}, "no single frame"),
        ("animate", DRIVEN | {"pose_video": "short"}, {}, "pose video has 5 frames, and 9 were asked for"),
        ("skyreels", {"image": "image"}, {}, "t2v from the prompt alone|takes no --image"),
        ("skyreels_i2v", {}, {}, "needs --image"),
        ("skyreels_df", {"video": "video"}, {"num_frames": 17}, "first 17 of the frames"),
        ("skyreels_df", {"video": "short"}, {"num_frames": 21}, "its last 17 are needed"),
        ("skyreels_df", {"image": "image"}, {"num_frames": 101}, "beyond 97.*makes whole clips"),
        ("chronoedit", {"video": "video"}, {}, "needs --image"),
        ("lucy", {}, {}, "needs --video"),
        ("anyflow_far", {}, {"num_frames": 9}, "1, 13, 21 frames"),
        ("anyflow_far", {"video": "video"}, {"num_frames": 13}, "no whole chunks of 13 frames"),
        ("anyflow_far", {}, {"num_frames": 13, "width": 80}, "multiples of 32"),
        ("helios", {"image": "image", "video": "video"}, {}, "given was --image --video"),
        ("helios", {"video": "short"}, {}, "its last 33 are needed"),
        ("helios_pyramid", {}, {"width": 128, "num_inference_steps": 4}, "cannot be shared among the 3 sizes"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_its_cause(
    kind: str,
    media_names: dict[str, str],
    fields: dict[str, Any],
    part: str,
    supervisor: Supervisor,
    media: dict[str, str],
) -> None:
    files = {role: media[file] for role, file in media_names.items()}
    request = {**SIZE, "num_frames": 9, **TEXT, **fields, **files}
    with pytest.raises(InvalidRequest, match=part) as caught:
        supervisor.generate(GenerationRequest(model=str(tiny_model(kind)), **request))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", sorted({case.kind for case in CASES.values()}))
def test_check_says_that_it_runs_here(kind: str, supervisor: Supervisor) -> None:
    report = supervisor.check(str(tiny_model(kind)))
    assert report.compatible_here, [(item.code, item.message) for item in report.findings]
