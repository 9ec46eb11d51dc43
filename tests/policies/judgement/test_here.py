"""What it is, what the installed libraries have, and whether it fits this machine."""

from __future__ import annotations

import dataclasses

import pytest

from tests.policies.judgement.drafts import (
    ARCHITECTURE,
    BIG,
    CURRENT,
    Draft,
    codes,
    image_to_video,
    tensors,
    text_to_video,
    the,
)
from wan_compat.policies.detection.traits import traits_of
from wan_compat.policies.findings import FINDINGS, Severity, finding
from wan_compat.policies.judgement.identity import TASKS, answer_task, judge_task
from wan_compat.policies.judgement.judge import exit_code, is_loadable, judge
from wan_compat.policies.judgement.versions import Installed, classes_to_find
from wan_compat.policies.registry_document import Alternative, RegistryEntry


def with_versions(**versions: str | None) -> Installed:
    return Installed({**CURRENT.versions, **versions})


# ---- identity ------------------------------------------------------------------------------------------------------


def test_another_family_is_one_error_without_advice_for_wan() -> None:
    draft = text_to_video()
    draft.known_as(is_wan=False, architecture_type="stable_diffusion", variant=None, pipeline_class=None)
    judged = draft.judged()
    assert "stable diffusion" in the(judged, "not_wan").message and is_loadable(judged)


def test_what_another_family_lacks_is_not_told() -> None:
    draft = text_to_video()
    draft.known_as(is_wan=False, architecture_type="unknown", variant=None, pipeline_class=None)
    draft.drop("text_encoder/")
    assert codes(draft.judged()) == ["not_wan"]


def test_what_nothing_names_is_unknown() -> None:
    draft = Draft({}, {"x.safetensors": {}}, set(), is_file=True)
    draft.known_as(is_wan=None, architecture_type="unknown", variant=None, layout="unknown", pipeline_class=None)
    assert the(draft.judged(), "unknown_architecture").severity is Severity.ERROR


def test_a_lone_component_is_no_whole_model() -> None:
    draft = Draft({}, {"vae.safetensors": tensors("vae-wan2.1")}, set(), is_file=True)
    draft.known_as(is_wan=None, variant=None, layout="component", pipeline_class="AutoencoderKLWan")
    judged = draft.judged()
    assert "only a part: vae" in the(judged, "not_runnable_yet").message and is_loadable(judged)


def test_variants_that_files_cannot_tell_apart_are_named() -> None:
    draft = text_to_video()
    draft.known_as(candidates=("wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b"))
    assert "fastwan2.1-t2v-1.3b" in the(draft.judged(), "ambiguous_variant").message


def test_a_model_without_pipeline_gets_an_alternative() -> None:
    draft = text_to_video()
    draft.known_as(variant="wan2.2-s2v-14b", version="2.2", pipeline_class=None, capabilities=("speech_to_video",))
    assert "program of its authors" in the(draft.judged(), "no_pipeline").fix
    facts = draft.facts()
    entry = RegistryEntry(alternative=Alternative(model="Wan-AI/Other", reason="it is similar"))
    judged = judge(facts, draft.architecture, traits_of(facts), CURRENT, BIG, entry)
    assert "Wan-AI/Other" in the(judged, "no_pipeline").fix
    draft.known_as(capabilities=("text_to_video",))
    assert "Wan-AI/Wan2.2-T2V-A14B-Diffusers" in the(draft.judged(), "no_pipeline").fix


def test_a_pipeline_of_another_task_is_a_warning() -> None:
    draft = text_to_video()
    draft.index["_class_name"] = "WanImageToVideoPipeline"
    found = the(draft.judged(), "pipeline_mismatch")
    assert found.severity is Severity.WARNING and "WanPipeline" in found.message


@pytest.mark.parametrize(
    ("task", "capabilities", "also", "supported", "pipeline"),
    [
        ("t2v", ("text_to_video",), (), True, "WanPipeline"),
        ("t2i", ("text_to_video",), (), True, "WanPipeline"),
        ("v2v", ("text_to_video",), ("WanVideoToVideoPipeline",), True, "WanVideoToVideoPipeline"),
        ("v2v", ("text_to_video",), (), False, None),
        ("i2v", ("text_to_video",), (), False, None),
        ("i2v", ("text_to_video", "image_to_video"), ("WanImageToVideoPipeline",), True, "WanImageToVideoPipeline"),
        ("ti2v", ("text_to_video", "image_to_video"), (), True, "WanPipeline"),
        ("ti2v", ("text_to_video",), (), False, None),
        ("animate", ("text_to_video",), (), False, None),
    ],
)
def test_a_task_is_answered_with_its_class(
    task: str, capabilities: tuple[str, ...], also: tuple[str, ...], supported: bool, pipeline: str | None
) -> None:
    answer = answer_task(task, dataclasses.replace(ARCHITECTURE, capabilities=capabilities, also_loads_as=also))
    assert (answer.supported, answer.pipeline_class) == (supported, pipeline)
    found = tuple(judge_task(answer))
    assert codes(found) == ([] if supported else ["task_not_supported"])
    assert supported or (answer.alternatives and answer.alternatives[0] in found[0].fix)


@pytest.mark.parametrize(
    ("named", "task", "supported", "pipeline"),
    [
        ("AnyFlowPipeline", "i2v", True, "AnyFlowPipeline"),
        ("SkyReelsV2DiffusionForcingPipeline", "v2v", True, "SkyReelsV2DiffusionForcingVideoToVideoPipeline"),
        ("SkyReelsV2Pipeline", "t2i", False, None),
        ("WanVACEPipeline", "t2i", True, "WanVACEPipeline"),
        ("WanVACEPipeline", "v2v", False, None),
    ],
)
def test_a_class_of_one_kind_of_weights_does_what_generate_does_with_it(
    named: str, task: str, supported: bool, pipeline: str | None
) -> None:
    architecture = dataclasses.replace(
        ARCHITECTURE, pipeline_class=named, also_loads_as=(), capabilities=("text_to_video",)
    )
    answer = answer_task(task, architecture)
    assert (answer.supported, answer.pipeline_class) == (supported, pipeline)
    assert supported or not any("VACE" in name for name in answer.alternatives)


def test_every_task_has_a_model() -> None:
    for task in TASKS:
        answer = answer_task(task, dataclasses.replace(ARCHITECTURE, capabilities=(), also_loads_as=()))
        assert answer.alternatives, task


# ---- versions ------------------------------------------------------------------------------------------------------


def test_no_diffusers_is_told() -> None:
    draft = text_to_video()
    draft.installed = with_versions(diffusers=None)
    found = the(draft.judged(), "diffusers_missing")
    assert found.fix == "pip install 'wan-compat[worker]'" and is_loadable(draft.judged())


def test_an_old_diffusers_is_told_with_both_versions_and_never_advised_below_the_floor() -> None:
    draft = text_to_video("wan-t2v-14b", experts=2)
    draft.known_as(variant="wan2.2-t2v-a14b", version="2.2")
    draft.installed = with_versions(diffusers="0.33.0")
    found = the(draft.judged(), "diffusers_too_old")
    assert "needs diffusers >= 0.35.0, you have 0.33.0" in found.message and "diffusers>=0.38.0" in found.fix
    draft.installed = with_versions(diffusers="0.36.0")
    assert "security" in the(draft.judged(), "diffusers_too_old").message
    draft.installed = with_versions(diffusers="0.42.1")
    assert "diffusers_too_old" not in codes(draft.judged())


def test_files_of_a_later_diffusers_are_a_warning_with_both_versions() -> None:
    draft = text_to_video()
    draft.documents["vae/config.json"] = {**draft.documents["vae/config.json"], "_diffusers_version": "0.99.0.dev0"}
    draft.installed = with_versions(diffusers="0.42.1")
    found = the(draft.judged(), "written_by_newer")
    assert found.severity is Severity.WARNING and "0.99.0" in found.message and "0.42.1" in found.message
    for harmless in ("0.42.1", "0.42.1.dev0", "no version", None):
        draft.documents["vae/config.json"]["_diffusers_version"] = harmless
        assert "written_by_newer" not in codes(draft.judged())


def test_of_look_alikes_the_one_that_asks_for_least_counts() -> None:
    draft = text_to_video()
    draft.known_as(candidates=("wan2.1-t2v-14b", "anyflow-wan2.1-t2v-14b"), variant="anyflow-wan2.1-t2v-14b")
    draft.installed = with_versions(diffusers="0.38.0")
    assert "diffusers_too_old" not in codes(draft.judged())


def test_packages_of_the_registry_are_asked_for_by_known_names_only() -> None:
    draft = text_to_video()
    facts = draft.facts()
    entry = RegistryEntry(
        required_dependencies=("transformers>=5.3.0", "ftfy>=6.3", "sentencepiece>=0.2", "evil-pkg>=1")
    )
    installed = with_versions(transformers="4.50.0", ftfy=None, sentencepiece="0.1.0")
    judged = judge(facts, draft.architecture, traits_of(facts), installed, BIG, entry)
    assert "4.50.0" in the(judged, "transformers_too_old").message
    assert {item.fix for item in judged if item.code == "dependency_missing"} == {
        "pip install 'ftfy>=6.3'",
        "pip install -U 'sentencepiece>=0.2'",
    }
    assert not any("evil" in item.fix for item in judged)


def test_without_an_entry_the_packages_of_every_worker_are_asked_for() -> None:
    draft = text_to_video()
    draft.installed = with_versions(torch=None)
    assert the(draft.judged(), "dependency_missing").fix == "pip install 'torch>=2.10'"


def test_classes_that_the_installed_libraries_lack_are_told() -> None:
    draft = text_to_video()
    draft.index["_class_name"] = "WanDMDPipeline"
    draft.index["transformer"] = ["diffusers", "KreaCausalWanTransformer3DModel"]
    asked = classes_to_find(draft.facts())
    assert asked == {("diffusers", "WanDMDPipeline"), ("diffusers", "KreaCausalWanTransformer3DModel")}
    draft.installed = Installed(CURRENT.versions, asked)
    judged = draft.judged()
    assert "WanDMDPipeline" in the(judged, "pipeline_class_unknown").message
    assert the(judged, "class_unknown").component == "transformer" and not is_loadable(judged)
    draft.others.add("pipeline.py")
    assert "pipeline.py" in the(draft.judged(), "remote_code_pipeline").message


def test_blocks_that_diffusers_lacks_are_code_of_the_repository() -> None:
    draft = text_to_video()
    draft.documents["modular_model_index.json"] = draft.documents.pop("model_index.json")
    draft.documents["modular_model_index.json"]["_blocks_class_name"] = "MyBlocks"
    draft.known_as(layout="modular")
    assert ("diffusers", "MyBlocks") in classes_to_find(draft.facts())
    draft.installed = Installed(CURRENT.versions, frozenset({("diffusers", "MyBlocks")}))
    assert "MyBlocks" in the(draft.judged(), "remote_code_pipeline").message


# ---- resources -----------------------------------------------------------------------------------------------------


def test_too_little_memory_does_not_hide_that_more_would_not_help() -> None:
    draft = text_to_video()
    draft.known_as(layout="single_file")
    draft.host = dataclasses.replace(BIG, memory_available_bytes=10**9, memory_total_bytes=10**9)
    judged = draft.judged()
    assert codes(judged) == ["not_runnable_yet", "memory_short"] and exit_code(judged) == 1


@pytest.mark.parametrize(
    ("free_gb", "total_gb", "code", "words"),
    [
        (10, 16, "memory_short", "use a machine with"),
        (16, 64, "memory_short", "close other programs"),
        (25, 64, "memory_tight", "25.0 GB of this machine's 64.0 GB"),
        (64, 64, None, ""),
    ],
)
def test_memory_is_judged_in_the_cheapest_precision(free_gb: int, total_gb: int, code: str | None, words: str) -> None:
    draft = text_to_video()  # 14.5 GB in bfloat16
    draft.host = dataclasses.replace(BIG, memory_available_bytes=free_gb * 10**9, memory_total_bytes=total_gb * 10**9)
    judged = draft.judged()
    assert [name for name in codes(judged) if name.startswith("memory")] == ([code] if code else [])
    if code:
        found = the(judged, code)
        assert words in f"{found.message} {found.fix}" and is_loadable(judged)


def test_what_generate_would_refuse_is_never_called_compatible() -> None:
    assert "not_runnable_yet" not in codes(image_to_video().judged())
    draft = text_to_video()
    draft.index["_class_name"] = "WanModularPipeline"
    judged = draft.judged()
    assert "WanModularPipeline" in the(judged, "not_runnable_yet").message and is_loadable(judged)
    draft = text_to_video()
    draft.known_as(layout="lora")
    assert "LoRA" in the(draft.judged(), "not_runnable_yet").message


# ---- exit codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), 0),
        (("pipeline_mismatch", "dtype_mixed"), 0),
        (("memory_short",), 6),
        (("memory_short", "diffusers_too_old"), 3),
        (("diffusers_missing", "no_pipeline"), 1),
        (("not_wan", "remote_code_auto_map"), 5),
        (("pickle_weights", "json_corrupt", "memory_short"), 4),
    ],
)
def test_the_most_fundamental_error_decides(names: tuple[str, ...], expected: int) -> None:
    assert exit_code([finding(name, "x") for name in names]) == expected
    assert exit_code([finding(name, "x") for name in reversed(names)]) == expected


def test_every_error_has_a_rank() -> None:
    assert {exit_code([finding(name, "x", severity=Severity.ERROR)]) for name in FINDINGS} <= {1, 3, 4, 5, 6}
