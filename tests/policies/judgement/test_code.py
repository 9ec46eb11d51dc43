"""Code in every guise that a library would follow, and pickles."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policies.judgement.drafts import Change, Draft, codes, tensors, text_to_video, the
from wan_compat.policies.findings import FINDINGS, Severity
from wan_compat.protocol.errors import RefusedByPolicy


def config(component: str, **changes: Any) -> Change:
    return lambda draft: draft.config(component).update(changes)


def index(**changes: Any) -> Change:
    return lambda draft: draft.index.update(changes)


def document(path: str, content: dict[str, Any]) -> Change:
    return lambda draft: draft.documents.update({path: content})


ROWS: list[tuple[str, Change, str, tuple[str, ...]]] = [
    ("a list as pipeline class", index(_class_name=["pipeline", "MyPipeline"]), "remote_code_pipeline", ("MyPipeline",)),
    ("a list as a model's class", config("vae", _class_name=["vae", "Mine"]), "remote_code_pipeline", ("vae/config.json",)),
    ("custom_pipeline", index(custom_pipeline="evil/pipe"), "remote_code_pipeline", ("evil/pipe",)),
    ("custom_pipelines", config("text_encoder", custom_pipelines={"a": {"impl": "x.y"}}), "remote_code_pipeline", ("x.y",)),
    ("auto_map in the index", index(auto_map={"AutoModel": "m.M"}), "remote_code_auto_map", ("m.M",)),
    ("auto_map in a config", config("text_encoder", auto_map={"AutoModel": "m.M"}), "remote_code_auto_map", ("text_encoder",)),
    ("auto_map far below", config("vae", a=[{"b": {"auto_map": {"x": "m.M"}}}]), "remote_code_auto_map", ("m.M",)),
    ("auto_map of a tokenizer", lambda d: d.documents["tokenizer/tokenizer_config.json"].update(auto_map={"T": ["a--b.T", None]}), "remote_code_auto_map", ("tokenizer",)),
    ("auto_map of modular blocks", document("modular_config.json", {"auto_map": {"ModularPipelineBlocks": "block.B"}}), "remote_code_auto_map", ("block.B",)),
    ("trust_remote_code", config("text_encoder", trust_remote_code=True), "remote_code_flag", ("trust_remote_code=True",)),
    ("trust_remote_code below", config("text_encoder", x={"trust_remote_code": "yes"}), "remote_code_flag", ("yes",)),
    ("an internal attention", config("text_encoder", _attn_implementation_internal="evil/kernel"), "remote_code_kernel", ("evil/kernel",)),
    ("an attention of a repository", config("text_encoder", attn_implementation="evil/flash@main:run"), "remote_code_kernel", ("evil/flash@main:run",)),
    ("kernels of a repository", config("vae", use_kernels_from="hf://evil/k"), "remote_code_kernel", ("evil/k",)),
    ("custom generation", document("text_encoder/generation_config.json", {"custom_generate": "evil/gen"}), "remote_code_kernel", ("evil/gen",)),
    ("a module as library", index(vae=["my_vae", "VAE"]), "library_unknown", ("my_vae", "VAE")),
    ("a dotted module", index(transformer=["gen3r.models.wan", "WanTransformer3DModel"]), "library_unknown", ("gen3r.models.wan",)),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_code_is_an_error_in_every_guise(change: Change, code: str, words: tuple[str]) -> None:
    draft = text_to_video()
    change(draft)
    found = the(draft.judged(), code)
    assert found.severity is Severity.ERROR and issubclass(FINDINGS[code].error, RefusedByPolicy)
    assert found.path and all(word in found.message for word in words), found.message


@pytest.mark.parametrize(
    "change",
    [
        index(auto_map=None, custom_pipeline="", _name_or_path="Wan-AI/Wan2.1-T2V-1.3B"),
        config("text_encoder", trust_remote_code=False, attn_implementation="sdpa", _name_or_path="google/umt5-xxl"),
        config("vae", kernel_size="3", custom_note="a note"),
        document("transformer/diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"auto_map": "x/y"}}),
    ],
)
def test_what_only_looks_like_code_is_none(change: Change) -> None:
    draft = text_to_video()
    change(draft)
    assert not [code for code in codes(draft.judged()) if code.startswith("remote_code")]


def test_a_module_that_lies_in_the_component_is_named() -> None:
    draft = text_to_video()
    draft.index["vae"] = ["my_vae", "VAE"]
    draft.others.add("vae/my_vae.py")
    judged = draft.judged()
    assert "vae/my_vae.py of the repository" in the(judged, "library_unknown").message
    assert the(judged, "remote_code_file").path == "vae/my_vae.py"


def test_files_of_code_are_a_warning_of_one_line() -> None:
    draft = text_to_video()
    draft.others |= {f"code/{number}.{kind}" for number in range(4) for kind in ("py", "pyc", "so", "SO.1")}
    found = the(draft.judged(), "remote_code_file")
    assert found.severity is Severity.WARNING and "16 files" in found.message and "and 11 more" in found.message


def test_references_to_other_repositories_are_told_and_to_the_own_are_not() -> None:
    draft = text_to_video()
    draft.documents["modular_model_index.json"] = draft.documents.pop("model_index.json")
    index = draft.documents["modular_model_index.json"]
    index["vae"] = [None, None, {"repo": "evil/vae", "subfolder": "vae"}]
    index["transformer"] = ["diffusers", "WanTransformer3DModel", {"pretrained_model_name_or_path": "me/mine"}]
    draft.repository = "me/mine"
    draft.known_as(layout="modular")
    assert "cross_repository_reference" not in codes(draft.judged())  # its files are here, and are what is taken
    draft.drop("vae/")
    found = the(draft.judged(), "cross_repository_reference")
    assert found.component == "vae" and "takes vae from 'evil/vae'" in found.message


def test_a_component_only_as_a_pickle_is_refused() -> None:
    draft = text_to_video()
    draft.drop("vae/diffusion")
    draft.others.add("vae/diffusion_pytorch_model.bin")
    found = the(draft.judged(), "pickle_weights")
    assert found.component == "vae" and "vae/diffusion_pytorch_model.bin" in found.message
    assert "weights_missing" not in codes(draft.judged())


@pytest.mark.parametrize("path", ["vae/old.bin", "optimizer.pt", "training/args.PKL", "relighting_lora.ckpt"])
def test_a_pickle_beside_safetensors_is_only_noted(path: str) -> None:
    draft = text_to_video()
    draft.others.add(path)
    judged = draft.judged()
    assert the(judged, "pickle_beside_safetensors").severity is Severity.INFO and "pickle_weights" not in codes(judged)


def test_pickles_of_the_original_layout_are_what_it_needs() -> None:
    draft = Draft({"config.json": {"model_type": "animate"}}, {"m.safetensors": tensors("wan-t2v-1.3b")}, set())
    draft.others |= {"Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "relighting_lora.ckpt"}
    draft.known_as(layout="original")
    found = the(draft.judged(), "pickle_weights")
    assert all(name in found.message for name in ("Wan2.1_VAE.pth", "models_t5", "relighting_lora.ckpt"))


def test_a_single_pickle_is_refused() -> None:
    draft = Draft({}, {}, {"model.pth"}, is_file=True)
    draft.known_as(layout="unknown", is_wan=None)
    assert "pickle_weights" in codes(draft.judged())
