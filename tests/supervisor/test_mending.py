"""Broken models that other files of theirs can help: decided as the sound model is, told, and never where there is doubt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.assets.breakage import as_variant, cut, cut_text, in_shards, weights
from tests.assets.corpus.repositories import BUILDERS
from tests.assets.tiny_wan import tiny_model
from tests.supervisor.test_check import BIG, edit, snapshot
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import (
    InvalidRequest,
    ModelCorrupt,
    ModelIndexMissing,
    ModelNotCompatible,
    PickleRefused,
    RemoteCodeRefused,
    WanCompatError,
)
from wan_compat.protocol.values import Mode, PipelineSpec
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.check import check_model
from wan_compat.supervisor.dry_run import look_ahead
from wan_compat.supervisor.model_choice import choose_model

T2V = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
I2V = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
TI2V = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
INDEX = "model_index.json"


def decided(path: Path, *, recover: bool = True) -> ModelDecision:
    return choose_model(str(path), Mode.SAFE, threads=1, memory_limit_bytes=1 << 50, recover=recover)


def repository(folder: Path, name: str) -> Path:
    """Build it in a folder of its own name, which speaks for it where files do not tell."""
    return BUILDERS[name](folder / name.partition(",")[0].rpartition("/")[2])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("t2v"), tmp_path / "model"))


# ---- the index -------------------------------------------------------------------------------------------------------


def no_class(path: Path) -> None:
    document = json.loads((path / INDEX).read_text())
    (path / INDEX).write_text(json.dumps({name: value for name, value in document.items() if name != "_class_name"}))


WAYS_TO_BREAK: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: (path / INDEX).write_text('{"_class_name": "Wan'),
    "gone": lambda path: (path / INDEX).unlink(),
    "mark": lambda path: (path / INDEX).write_bytes(b"\xef\xbb\xbf" + (path / INDEX).read_bytes()),
    "no class": no_class,
    "no pair": lambda path: edit(path / INDEX, vae="AutoencoderKLWan"),
    "unknown class": lambda path: edit(path / INDEX, _class_name="WanDreamPipeline"),
}


@pytest.mark.parametrize("how", WAYS_TO_BREAK)
def test_a_broken_index_is_rebuilt_in_memory_and_decided_as_the_sound_one(model: Path, how: str) -> None:
    sound = decided(model)
    WAYS_TO_BREAK[how](model)
    before = snapshot(model)
    with pytest.raises((ModelCorrupt, ModelIndexMissing, ModelNotCompatible)):
        decided(model, recover=False)
    mended = decided(model)
    assert mended.pipeline == sound.pipeline and snapshot(model) == before
    (mend,) = mended.mends
    assert mend.error.startswith(("model_corrupt: ", "model_index_missing: ", "model_not_compatible: "))
    shown = how in ("mark", "unknown class")
    assert any(fact.path == INDEX for fact in mended.admitted) is shown  # what is broken, no worker sees


@pytest.mark.parametrize("name", [T2V, I2V, A14B, TI2V])
def test_published_models_get_their_own_pipeline_back(tmp_path: Path, name: str) -> None:
    path = repository(tmp_path, name)
    sound = decided(path)
    (path / INDEX).unlink()
    assert decided(path).pipeline == sound.pipeline


@pytest.mark.long
def test_no_known_repository_is_mended_into_something_else(tmp_path: Path) -> None:
    tried = mended = 0
    for name in BUILDERS:
        path = repository(tmp_path / str(tried), name)
        if not (path / INDEX).is_file():
            continue  # another layout: there is no index to break
        tried += 1
        text = (path / INDEX).read_text()
        sound = pipeline_of(path)
        for broken in (None, json.dumps(json.loads(text) | {"_class_name": "WanDreamPipeline"})):
            (path / INDEX).unlink(missing_ok=True)
            if broken is not None:
                (path / INDEX).write_text(broken)
            found = pipeline_of(path)
            assert found is None or found == sound, name
            mended += found is not None
    assert tried > 40 and mended > 50


def pipeline_of(path: Path) -> PipelineSpec | None:
    try:
        return decided(path).pipeline
    except WanCompatError:
        return None


def test_files_that_several_pipelines_could_run_need_a_name_that_speaks_for_one(tmp_path: Path) -> None:
    path = BUILDERS[I2V](tmp_path / "some-model")  # ChronoEdit has the same files
    (path / INDEX).unlink()
    with pytest.raises(ModelIndexMissing):
        decided(path)


@pytest.mark.parametrize("how", ["gone", "unknown class"])
def test_a_repository_that_brings_code_is_never_mended(model: Path, how: str) -> None:
    WAYS_TO_BREAK[how](model)
    (model / "pipeline.py").write_text("class WanDreamPipeline: ...\n")
    with pytest.raises((ModelIndexMissing, RemoteCodeRefused)):
        decided(model)


def test_code_that_a_legible_index_names_is_not_lost_by_mending(model: Path) -> None:
    edit(model / INDEX, transformer=["my_transformer", "MyTransformer"], vae="AutoencoderKLWan")
    with pytest.raises(WanCompatError) as caught:
        decided(model)
    assert not caught.value.message.startswith("mended") and caught.value.code in (
        "remote_code_refused",
        "model_corrupt",
    )


def test_settings_of_an_unknown_class_are_doubt(model: Path) -> None:
    edit(model / INDEX, _class_name="WanDreamPipeline", dream_strength=0.3)
    with pytest.raises(ModelNotCompatible):
        decided(model)


@pytest.mark.parametrize(
    "named", ["CogVideoXPipeline", "StableDiffusionPipeline", "WanDMDPipeline", "ReduxImageEncoder"]
)
def test_a_class_that_somebody_has_is_no_other_class(model: Path, named: str) -> None:
    edit(model / INDEX, _class_name=named)
    with pytest.raises(ModelNotCompatible):
        decided(model)


def test_the_one_model_in_a_folder_is_meant_and_none_of_two(model: Path) -> None:
    sound = decided(model)
    for path in (model.parent, model / INDEX):
        with pytest.raises(WanCompatError):
            decided(path, recover=False)
        found = decided(path)
        assert found.pipeline == sound.pipeline and [fact.real_path for fact in found.admitted] == [
            fact.real_path for fact in sound.admitted
        ]
        assert str(model) in found.mends[0].action
    shutil.copytree(model, model.parent / "another")
    with pytest.raises(ModelIndexMissing):
        decided(model.parent)
    with pytest.raises(WanCompatError):
        decided(model / "transformer")  # what lies above or beside was not named


# ---- weights and parts -------------------------------------------------------------------------------------------------


def truncated_with_variant(model: Path) -> None:
    as_variant(model, "vae", "fp16")
    cut(weights(model, "vae"))


def pointer_with_variant(model: Path) -> None:
    as_variant(model, "transformer", "bf16")
    weights(model, "transformer").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    )


def variant_alone(model: Path) -> None:
    as_variant(model, "text_encoder", "fp16")
    weights(model, "text_encoder").unlink()


SOUND_BESIDE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "variant of cut weights": (truncated_with_variant, ("vae/diffusion_pytorch_model.fp16.safetensors",)),
    "variant of a pointer": (pointer_with_variant, ("transformer/diffusion_pytorch_model.bf16.safetensors",)),
    "variant alone": (variant_alone, ("text_encoder/model.fp16.safetensors",)),
    "whole file, a shard gone": (
        lambda model: in_shards(model, "transformer", whole=True)[0].unlink(),
        ("transformer/diffusion_pytorch_model.safetensors",),
    ),
    "shards, whole file cut": (
        lambda model: (in_shards(model, "transformer", whole=True), cut(weights(model, "transformer"))),
        (
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        ),
    ),
}


@pytest.mark.parametrize("how", SOUND_BESIDE)
def test_sound_weights_beside_broken_ones_are_taken(model: Path, how: str) -> None:
    sound = decided(model)
    break_it, files = SOUND_BESIDE[how]
    break_it(model)
    with pytest.raises(ModelCorrupt):
        decided(model, recover=False)
    mended = decided(model)
    part = files[0].partition("/")[0]
    taken = {fact.real_path for fact in mended.admitted if fact.path.startswith(f"{part}/") and "json" not in fact.path}
    assert taken == {str(model / path) for path in files} and mended.pipeline == sound.pipeline
    rounded = any(variant in files[0] for variant in (".fp16.", ".bf16."))
    assert ("pixels may differ" in mended.mends[0].action) is rounded


@pytest.mark.parametrize("variant", ["non_ema", "fp8"])
def test_other_weights_are_no_variant_of_broken_ones(model: Path, variant: str) -> None:
    as_variant(model, "vae", variant)
    cut(weights(model, "vae"))
    with pytest.raises(ModelCorrupt):
        decided(model)


def test_a_broken_variant_helps_nobody(model: Path) -> None:
    truncated_with_variant(model)
    cut(model / "vae/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ModelCorrupt):
        decided(model)


def test_a_variant_does_not_open_the_door_that_a_pickle_closed(model: Path) -> None:
    as_variant(model, "vae", "fp16")
    weights(model, "vae").unlink()
    (model / "vae/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04]q\x00.")
    with pytest.raises(PickleRefused):
        decided(model)


PARTS: dict[str, Callable[[Path], object]] = {
    "no config of the VAE": lambda model: (model / "vae/config.json").unlink(),
    "cut config of the text encoder": lambda model: cut_text(model / "text_encoder/config.json"),
    "no list of shards": lambda model: in_shards(model, "transformer", listed=False),
    "cut list of shards": lambda model: (
        in_shards(model, "vae"),
        cut_text(model / "vae/diffusion_pytorch_model.safetensors.index.json"),
    ),
}


@pytest.mark.parametrize("how", PARTS)
def test_a_part_without_its_documents_is_read_by_its_tensors(model: Path, how: str) -> None:
    sound = {part.name: part.class_name for part in decided(model).pipeline.components}
    PARTS[how](model)
    with pytest.raises(ModelCorrupt):
        decided(model, recover=False)
    mended = decided(model)
    assert {part.name: part.class_name for part in mended.pipeline.components} == sound
    assert [part.source is not None for part in mended.pipeline.components].count(True) == 1 and len(mended.mends) == 1


def test_heads_of_an_unpublished_size_are_not_guessed(model: Path) -> None:
    (model / "transformer/config.json").unlink()
    with pytest.raises(ModelCorrupt):
        decided(model)


@pytest.mark.parametrize("how", [*WAYS_TO_BREAK, *SOUND_BESIDE, *PARTS])
def test_nothing_that_is_mended_lets_in_what_safe_mode_refuses(model: Path, how: str) -> None:
    """Stock classes, safe formats, files of the model: and where code or pickles lie beside, the refusal stays."""
    change = WAYS_TO_BREAK.get(how) or PARTS.get(how) or SOUND_BESIDE[how][0]
    change(model)
    mended = decided(model)
    assert mended.pipeline.code is None and mended.pipeline.restricted is None and mended.pipeline.frames == "vae"
    assert all(
        part.code is None and part.library in ("diffusers", "transformers") for part in mended.pipeline.components
    )
    for fact in mended.admitted:
        assert Path(fact.real_path).is_relative_to(model) and not Path(fact.real_path).is_symlink()
        assert fact.real_path.endswith((".safetensors", ".json", ".model"))
    edit(model / "transformer/config.json", auto_map={"AutoModel": "my_code.MyModel"})
    with pytest.raises(WanCompatError):
        decided(model)


def test_a_link_out_of_the_model_is_no_sound_file_beside(model: Path, tmp_path: Path) -> None:
    truncated_with_variant(model)
    variant = model / "vae/diffusion_pytorch_model.fp16.safetensors"
    variant.rename(tmp_path / "elsewhere.safetensors")
    variant.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(WanCompatError):
        decided(model)


def test_two_things_at_once_are_both_helped(model: Path) -> None:
    truncated_with_variant(model)
    (model / INDEX).unlink()
    assert len(decided(model).mends) == 2


def test_a_broken_document_beside_sound_shards_is_no_fault_of_theirs(model: Path) -> None:
    in_shards(model, "vae", whole=True)
    cut(as_variant(model, "vae", "fp16"))
    cut(weights(model, "vae"))
    cut_text(model / "vae/config.json")
    errors = [mend.error for mend in decided(model).mends]
    assert len(errors) == 2 and "config.json" in errors[1]


# ---- who asks ----------------------------------------------------------------------------------------------------------


def test_check_keeps_its_verdict_and_says_that_generate_goes_on(model: Path) -> None:
    (model / INDEX).write_text("{")
    report = check_model(str(model), host=BIG)
    assert report.exit_code == 4
    (found,) = (item for item in report.findings if item.code == "generate_mends")
    assert "rebuild model_index.json in memory" in found.message
    cut(weights(model, "vae"))
    assert "generate_mends" not in {item.code for item in check_model(str(model), host=BIG).findings}


def test_a_policy_that_wants_every_file_verified_wants_no_mended_ones(model: Path) -> None:
    (model / INDEX).write_text("{")
    request = GenerationRequest(model=str(model), prompt="x", height=64, width=96, num_frames=5)
    assert look_ahead(request, Policy()).model.mends
    with pytest.raises(ModelCorrupt):
        look_ahead(request, Policy(require_manifest=True))
    with pytest.raises(ModelCorrupt):
        look_ahead(request.model_copy(update={"recover": False}), Policy())


def test_what_the_mended_model_cannot_do_is_told_instead(model: Path) -> None:
    from wan_compat.policies.tasks import Wish

    (model / INDEX).write_text("{")
    with pytest.raises(InvalidRequest):
        choose_model(str(model), Mode.SAFE, threads=1, memory_limit_bytes=1 << 50, wish=Wish(task="i2v"))


def test_a_job_tells_what_was_mended_and_each_of_its_videos_has_it(model: Path, supervisor: Supervisor) -> None:
    cut_text(model / INDEX)
    request = GenerationRequest(
        model=str(model), prompt="x", height=64, width=96, num_frames=5, num_inference_steps=1, seed=1, num_videos=2
    )
    job = supervisor.submit(request)
    told = [event for event in job.events() if isinstance(event, ev.Recovering | ev.Recovered)]
    results = job.results(60)
    assert [type(event) for event in told] == [ev.Recovering, ev.Recovered] and len(results) == 2
    for result in results:
        (entry,) = result.recovery
        assert entry["error"].startswith("model_corrupt: ") and entry["outcome"] == "succeeded"
    assert any("rebuild model_index.json" in warning for warning in results[0].warnings)
