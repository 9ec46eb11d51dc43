"""diffusers' modular blocks through real workers: a plain script's bytes, plans, and what an index may not do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.assets.plain_cases import SIZE, TEXT, Case, assert_equal, run, run_plain, with_another_gamma, write_media
from tests.assets.tiny_wan import tiny_model, tiny_models
from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol.errors import (
    InvalidRequest,
    MemoryExceeded,
    ModelCorrupt,
    ModelNotCompatible,
    RemoteCodeRefused,
    WanCompatError,
)

INDEX = "modular_model_index.json"
IMAGE = {"image": ("image", None, "RGB")}
# Scales are the guiders', not arguments of the call.
CALL = {"guidance_scale": None, "guidance_scale_2": None}
ONE, TWO = {"guider": 4.0}, {"guider": 4.0, "guider_2": 2.0}
VIDEO = {"video": ("video", 9, "RGB")}
PYRAMID = {"width": 128, "num_inference_steps": 3}
STAGES = {"num_inference_steps": None, "pyramid_num_inference_steps_list": [1, 1, 1]}
DRIVEN = Case(
    "animate2",
    "WanAnimate2ModularPipeline",
    {"image": "image", "video": "video"},
    plain=CALL | {"num_frames": None, "segment_frame_length": 9},
    plain_media=IMAGE | {"driving_video": ("video", 9, "RGB")},
    guiders=ONE,
)
CASES = {
    "t2v": Case("modular_t2v", "WanModularPipeline", plain=CALL, guiders=ONE),
    "two experts": Case(
        "modular_a14b",
        "Wan22ModularPipeline",
        fields={"num_inference_steps": 4, "guidance_scale_2": 2.0},
        plain=CALL,
        guiders=TWO,
        steps=4,
    ),
    "i2v": Case(
        "modular_i2v", "WanImage2VideoModularPipeline", {"image": "image"}, plain=CALL, plain_media=IMAGE, guiders=ONE
    ),
    "i2v, two experts": Case(
        "modular_i2v22",
        "Wan22Image2VideoModularPipeline",
        {"image": "image"},
        {"guidance_scale_2": 2.0},
        plain=CALL,
        plain_media=IMAGE,
        guiders=TWO,
    ),
    "vace": Case(
        "modular_vace22",
        "Wan22VaceModularPipeline",
        {"video": "video", "mask": "mask"},
        {"guidance_scale_2": 2.0, "conditioning_scale": 0.7},
        plain=CALL,
        plain_media=VIDEO | {"mask": ("mask", 9, "L")},
        guiders=TWO,
    ),
    "helios": Case("modular_helios", "HeliosModularPipeline", plain=CALL, guiders=ONE, frames=(0, 9)),
    "helios i2v": Case(
        "modular_helios",
        "HeliosModularPipeline",
        {"image": "image"},
        plain=CALL,
        plain_media=IMAGE,
        guiders=ONE,
        frames=(0, 9),
    ),
    "helios pyramid": Case(
        "modular_helios_pyramid",
        "HeliosPyramidModularPipeline",
        fields=PYRAMID,
        plain=CALL | STAGES,
        guiders=ONE,
        frames=(0, 9),
        steps=3,
    ),
    "helios distilled": Case(
        "modular_helios_distilled",
        "HeliosPyramidDistilledModularPipeline",
        fields=PYRAMID | {"guidance_scale": 1.0},
        plain=CALL | STAGES,
        guiders={"guider": 1.0},
        frames=(0, 9),
        steps=6,
    ),
    "animate-2": DRIVEN,
    "animate-2 distilled": Case(
        "animate2_distilled",
        "WanAnimate2DistilledModularPipeline",
        DRIVEN.media,
        {"guidance_scale": 1.0},
        plain=DRIVEN.plain,
        plain_media=DRIVEN.plain_media,
        guiders={"guider": 1.0},
    ),
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = tiny_models({case.kind for case in CASES.values()})
    for kind in ("modular_helios_pyramid", "modular_helios_distilled"):
        found[kind] = with_another_gamma(found[kind], tmp_path_factory.mktemp("models") / kind)
    return found


@pytest.fixture(scope="module")
def plain(models: dict[str, Path], media: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    run_plain(CASES, models, media, folder)
    return folder


@pytest.fixture(scope="module")
def unchanged(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the frames of the model as it is, which the long test holds to a plain script's."""
    path = tmp_path_factory.mktemp("unchanged") / "t2v.npy"
    np.save(path, generate(supervisor, tiny_model("modular_t2v")).frames.frames)
    return path


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_frames_equal_a_plain_diffusers_script_byte_for_byte(
    name: str, supervisor: Supervisor, models: dict[str, Path], media: dict[str, str], plain: Path
) -> None:
    case = CASES[name]
    result, steps = run(supervisor, case, models[case.kind], media)
    assert_equal(case, result, steps, plain / f"{name}.npy")


def test_blocks_for_first_and_last_frame_need_no_torchvision_and_cut_the_last_as_the_ordinary_pipeline(
    supervisor, media, tmp_path
) -> None:
    last = tmp_path / "last.png"
    Image.open(media["image"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(last)
    given = {"image": media["image"], "last_image": str(last)}
    blocks, ordinary = (
        generate(supervisor, tiny_model(kind), **given).frames.frames for kind in ("modular_flf2v", "flf2v")
    )
    assert np.abs(blocks.astype(int) - ordinary).max() <= 3  # another padding of the prompt
    other = generate(supervisor, tiny_model("modular_flf2v"), image=media["image"], last_image=media["image"])
    assert (other.frames.frames != blocks).any()


def test_noise_of_modular_helios_pyramid_is_drawn_on_a_cpu_where_diffusers_fails(supervisor) -> None:
    result = generate(supervisor, tiny_model("modular_helios_pyramid"), **PYRAMID)
    assert result.frames is not None and result.frames.frames.std() > 5


LARGE = {"height": 512, "width": 768, "num_frames": 9, "num_inference_steps": 1, "max_sequence_length": 512}
LIMIT = 900 * 10**6  # between what tiles take and what the whole takes, and more than any worker needs


def test_job_of_blocks_that_does_not_fit_is_refused_before_loading_with_the_nearest_that_does(supervisor) -> None:
    with pytest.raises(MemoryExceeded, match="do not fit") as caught:
        generate(supervisor, tiny_model("modular_t2v"), **LARGE | {"num_frames": 81}, memory_limit_bytes=LIMIT)
    assert caught.value.exit_code == 6 and caught.value.fixes[0].startswith("ask for --")


@pytest.mark.long
def test_job_of_blocks_under_a_limit_is_done_in_tiles_within_it(supervisor) -> None:
    result = generate(supervisor, tiny_model("modular_t2v"), **LARGE, memory_limit_bytes=LIMIT)
    assert result.metadata.plan["name"].endswith("tiled-whole")
    assert any(item.startswith("vae_tiling") for item in result.metadata.optimizations_applied)
    assert result.peak["worker_rss_bytes"] <= LIMIT


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Copy a tiny model and change its index."""

    def change(kind: str, edit: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / kind
        shutil.copytree(tiny_model(kind), folder)
        index = json.loads((folder / INDEX).read_text())
        edit(index)
        (folder / INDEX).write_text(json.dumps(index))
        return folder

    return change


def generate(supervisor: Supervisor, model: Path, **fields: Any) -> Any:
    return supervisor.generate(
        GenerationRequest(model=str(model), seed=7, **{**SIZE, "num_frames": 9, **TEXT, **fields})
    )


def refer(name: str, repository: str) -> Callable[[dict[str, Any]], None]:
    def edit(index: dict[str, Any]) -> None:
        index[name][2]["pretrained_model_name_or_path"] = repository

    return edit


def test_part_that_is_here_is_taken_from_here_whatever_repository_the_index_names(
    supervisor, changed, unchanged
) -> None:
    model = changed("modular_t2v", refer("vae", "nobody/elsewhere"))
    assert_equal(CASES["t2v"], generate(supervisor, model), [(1, 2), (2, 2)], unchanged)


def test_part_in_another_repository_is_refused_and_nothing_is_fetched(supervisor, changed) -> None:
    model = changed("modular_t2v", refer("vae", "nobody/elsewhere"))
    shutil.rmtree(model / "vae")
    with pytest.raises(ModelNotCompatible, match="takes vae from 'nobody/elsewhere'") as caught:
        generate(supervisor, model)
    assert caught.value.hint == "use nobody/elsewhere itself"


def test_class_of_a_reference_is_that_of_its_type_hint(supervisor, changed, unchanged) -> None:
    def edit(index: dict[str, Any]) -> None:
        index["vae"][:2] = [None, None]

    result = generate(supervisor, changed("modular_t2v", edit))
    assert_equal(CASES["t2v"], result, [(1, 2), (2, 2)], unchanged)


@pytest.mark.parametrize(
    ("key", "value", "error", "part"),
    [
        ("_blocks_class_name", "OwnBlocks", ModelNotCompatible, "builds WanModularPipeline of 'OwnBlocks'"),
        ("_class_name", "QwenImageModularPipeline", ModelNotCompatible, "'QwenImageModularPipeline' of modular blocks"),
        ("_class_name", ["own", "Pipeline"], RemoteCodeRefused, "class of the repository's own"),
        ("_class_name", "Wan22ModularPipeline", ModelNotCompatible, "of 'WanBlocks', not of Wan22Blocks"),
        ("transformer", [None, None], ModelCorrupt, "names no transformer"),
        ("vae", ["own_module", "OwnVae", {}], ModelNotCompatible, "is own_module.OwnVae"),
        ("scheduler", ["diffusers", "DDIMScheduler", {}], ModelNotCompatible, "is diffusers.DDIMScheduler"),
    ],
)
def test_index_that_asks_for_something_else_is_refused(
    key: str, value: Any, error: type[WanCompatError], part: str, supervisor: Supervisor, changed: Any
) -> None:
    model = changed("modular_t2v", lambda index: index.update({key: value}))
    with pytest.raises(error, match=part):
        generate(supervisor, model)


def test_scale_of_the_repositorys_guider_is_used_where_the_request_has_none(supervisor, changed, unchanged) -> None:
    reference = {"subfolder": "guider", "type_hint": ["diffusers", "ClassifierFreeGuidance"]}
    model = changed(
        "modular_t2v", lambda index: index.update(guider=["diffusers", "ClassifierFreeGuidance", reference])
    )
    (model / "guider").mkdir()
    settings = {"_class_name": "ClassifierFreeGuidance", "guidance_scale": 4.0}
    (model / "guider" / "guider_config.json").write_text(json.dumps(settings))
    result = generate(supervisor, model, guidance_scale=None)
    assert_equal(CASES["t2v"], result, [(1, 2), (2, 2)], unchanged)


@pytest.mark.parametrize(
    ("kind", "fields", "part"),
    [
        ("modular_t2v", {"image": "image"}, "takes no --image"),
        ("modular_i2v", {}, "needs --image"),
        ("modular_i2v22", {"image": "image", "last_image": "image"}, "takes no --last-image"),
        ("modular_flf2v", {"image": "image"}, "needs --last-image"),
        ("modular_helios", {"video": "short"}, "its last 33 are needed"),
        ("modular_vace22", {"mask": "mask"}, "needs --video or --reference"),
        ("animate2", {"image": "image"}, "needs --video"),
        ("animate2", {"image": "image", "video": "short"}, "video has 5 frames"),
        (
            "animate2",
            {"image": "image", "video": "video", "offload": "model"},
            "offload .model. is for ordinary pipelines",
        ),
    ],
)
def test_what_the_blocks_cannot_do_is_refused_with_its_cause(
    kind: str, fields: dict[str, str], part: str, supervisor: Supervisor, media: dict[str, str]
) -> None:
    given = {name: media.get(value, value) for name, value in fields.items()}
    with pytest.raises(InvalidRequest, match=part):
        generate(supervisor, tiny_model(kind), **given)


@pytest.mark.parametrize(
    "kind", ["modular_t2v", "modular_i2v22", "animate2", "modular_flf2v", "modular_helios_distilled"]
)
def test_check_says_that_it_runs_here(kind: str, supervisor: Supervisor) -> None:
    report = supervisor.check(str(tiny_model(kind)))
    assert report.architecture.pipeline_class is not None
    assert report.compatible_here, [(item.code, item.message) for item in report.findings]
