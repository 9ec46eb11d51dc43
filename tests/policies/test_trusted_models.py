"""Tables of facts and approvals: which approved code runs, with which files, and what no approval covers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.policies.test_models import CONFIGS, FILES, INDEX, facts
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.trust import RepositoryTree, TrustDecision, TrustedFile, TrustOutcome
from wan_compat.policies.trusted_models import MAX_CODE_FILES, decide_trusted_model
from wan_compat.protocol import errors
from wan_compat.protocol.values import CodeSpec

OWN_INDEX = INDEX | {"_class_name": ["own", "OwnPipeline"]}


def repository(
    *files: str, index: Mapping[str, Any] | None = INDEX, documents: Mapping[str, Any] | None = None, **configs: Any
) -> ModelFacts:
    """Facts of the plain model with more files, another index, and further documents or configurations."""
    found = facts(files=[*FILES, *files], index=index or {}, configs=CONFIGS | configs)
    more = copy.deepcopy(dict(documents or {}))
    kept = {
        path: document for path, document in found.documents.items() if index is not None or path != "model_index.json"
    }
    listed = {**found.files, **{path: FileFact(path, f"/models/m/{path}", 9, 1, 2, 3) for path in more}}
    if index is None:
        del listed["model_index.json"]
    return dataclasses.replace(found, documents=kept | more, files=listed)


def approval(found: ModelFacts, outcome: TrustOutcome = TrustOutcome.GRANTED) -> TrustDecision:
    """The decision about a tree that has these very files."""
    listed = tuple(found.files[path] for path in sorted(found.files))
    files = tuple(TrustedFile(path=fact.path, size=fact.size, sha256="0" * 64) for fact in listed)
    tree = RepositoryTree(source="/models/m", revision=None, root="/models/m", files=files, facts=listed)
    return TrustDecision(outcome, "approved on a day", tree)


def decide(found: ModelFacts, trust: TrustDecision | None = None) -> ModelDecision:
    return decide_trusted_model(found, trust or approval(found), threads=2, memory_limit_bytes=8 << 30)


def shown(decision: ModelDecision) -> set[str]:
    return {fact.path for fact in decision.admitted if fact.path.endswith(".py")}


def test_nothing_runs_without_an_approval() -> None:
    found = repository("own.py", index=OWN_INDEX)
    for outcome in (TrustOutcome.REFUSED, TrustOutcome.NOT_NEEDED):
        with pytest.raises(errors.TrustRefused):
            decide(found, approval(found, outcome))


def test_own_pipeline_with_its_settings_and_every_approved_python_file() -> None:
    index = OWN_INDEX | {"strength": 0.5, "deep": {"a": 1}, "note": "x" * 300, "many": [1, 2], "boundary_ratio": None}
    decision = decide(repository("own.py", "lib/a.py", "not importable.py", "lib/x.pyc", index=index))
    assert decision.pipeline.code == CodeSpec(module="own.py", class_name="OwnPipeline")
    assert decision.pipeline.settings == {"strength": 0.5, "boundary_ratio": None, "expand_timesteps": False}
    assert decision.pipeline.streaming == "never"
    assert shown(decision) == {"own.py", "lib/a.py", "pipeline.py"}
    assert not {"README.md", "transformer/extra.bin", "lib/x.pyc"} & {fact.path for fact in decision.admitted}
    assert decision.trust is not None


def test_plain_pipeline_is_decided_as_in_safe_mode_and_no_code_is_shown() -> None:
    from wan_compat.policies.models import decide_model

    found = repository()
    safe = decide_model(found, threads=2, memory_limit_bytes=8 << 30)
    decision = decide(found)
    assert decision.pipeline == safe.pipeline and decision.admitted == safe.admitted
    assert (decision.size_multiple, decision.frame_multiple) == (safe.size_multiple, safe.frame_multiple)


OWN_TRANSFORMER = CodeSpec(module="transformer/own.py", class_name="Own")
COMPONENTS: dict[str, tuple[ModelFacts, str, CodeSpec, str]] = {
    "module": (
        repository("transformer/own.py", index=INDEX | {"transformer": ["own", "Own"]}, transformer={"_class_name": "Own"}),
        "transformer", OWN_TRANSFORMER, "diffusers",
    ),
    "auto class": (
        repository("transformer/own.py", index=INDEX | {"transformer": ["diffusers", "AutoModel"]},
                   transformer={"_class_name": "Own", "auto_map": {"AutoModel": "own.Own"}}),
        "transformer", OWN_TRANSFORMER, "diffusers",
    ),
    "class of auto_map": (
        repository("text_encoder/m.py", index=INDEX | {"text_encoder": ["transformers", "Enc"]},
                   text_encoder={"model_type": "x", "auto_map": {"AutoConfig": "m.Cfg", "AutoModel": "m.Enc"}}),
        "text_encoder", CodeSpec(module="text_encoder/m.py", class_name="Enc"), "transformers",
    ),
    "scheduler": (
        repository("scheduler/own.py", index=INDEX | {"scheduler": ["own", "Own"]},
                   documents={"scheduler/scheduler_config.json": {}}, scheduler={}),
        "scheduler", CodeSpec(module="scheduler/own.py", class_name="Own"), "diffusers",
    ),
    "fast tokenizer of two": (
        repository("tokenizer/t.py", index=INDEX | {"tokenizer": ["transformers", "AutoTokenizer"]},
                   documents={"tokenizer/tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.Slow", "t.Fast"]}}}),
        "tokenizer", CodeSpec(module="tokenizer/t.py", class_name="Fast"), "transformers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPONENTS)
def test_component_of_its_own(case: str) -> None:
    found, name, code, library = COMPONENTS[case]
    documents = dict(found.documents)
    if name in ("scheduler", "tokenizer"):  # they have no config.json
        documents.pop(f"{name}/config.json")
    decision = decide(dataclasses.replace(found, documents=documents))
    (component,) = (item for item in decision.pipeline.components if item.name == name)
    assert component.code == code and component.class_name == code.class_name and component.library == library
    assert (component.dtype is None) == (name in ("scheduler", "tokenizer"))
    assert decision.pipeline.code is None and code.module in shown(decision)


def test_auto_map_beside_a_class_of_the_library_changes_nothing() -> None:
    """As the libraries: the index names a class of theirs, and that is what is loaded."""
    decision = decide(
        repository("transformer/own.py", transformer=CONFIGS["transformer"] | {"auto_map": {"AutoModel": "own.Own"}})
    )
    assert all(component.code is None for component in decision.pipeline.components)
    assert shown(decision) == set()


def test_own_vae_is_never_decoded_below_its_own_method() -> None:
    assert decide(repository()).pipeline.streaming == "auto"
    decision = decide(repository("vae/own.py", index=INDEX | {"vae": ["own", "Own"]}))
    assert decision.pipeline.streaming == "never"


def modular(**changes: Any) -> ModelFacts:
    """A modular repository: blocks, and an index with references to itself."""
    entries = {name: [*entry, {"repo": None, "subfolder": name}] for name, entry in INDEX.items() if _is_part(entry)}
    documents = {
        "modular_config.json": {"auto_map": {"ModularPipelineBlocks": "blocks.Own"}},
        "modular_model_index.json": {"_class_name": "WanModularPipeline", **entries, **changes},
    }
    return repository("blocks.py", index=None, documents=documents)


def _is_part(entry: Any) -> bool:
    return isinstance(entry, list) and entry[0] is not None


def test_modular_blocks_with_the_components_of_their_index() -> None:
    decision = decide(modular())
    assert decision.pipeline.code == CodeSpec(module="blocks.py", class_name="Own")
    assert decision.pipeline.code_kind == "blocks"
    assert {item.name for item in decision.pipeline.components} == {
        "scheduler",
        "text_encoder",
        "tokenizer",
        "transformer",
        "vae",
    }


def test_a_modular_index_may_leave_the_class_to_the_component() -> None:
    found = modular(transformer=[None, None, {"repo": None, "subfolder": "transformer"}])
    documents = dict(found.documents)
    documents["transformer/config.json"] = CONFIGS["transformer"] | {"_class_name": "WanTransformer3DModel"}
    decision = decide(dataclasses.replace(found, documents=documents))
    (transformer,) = (item for item in decision.pipeline.components if item.name == "transformer")
    assert (transformer.class_name, transformer.code) == ("WanTransformer3DModel", None)


ELSEWHERE = {"pretrained_model_name_or_path": "other/repo", "subfolder": "transformer"}
REFUSED: dict[str, tuple[Callable[[], ModelFacts], type[errors.WanCompatError], str]] = {
    "file that is not there": (lambda: repository(index=OWN_INDEX), errors.RemoteCodeRefused, "own.py"),
    "module outside": (
        lambda: repository("own.py", index=INDEX | {"_class_name": ["../own", "Own"]}), errors.RemoteCodeRefused, "model_index.json"),
    "module with a dot": (
        lambda: repository("own.py", index=INDEX | {"_class_name": ["own.sub", "Own"]}), errors.RemoteCodeRefused, "own.sub"),
    "class with markup": (
        lambda: repository("own.py", index=INDEX | {"_class_name": ["own", "Own\x1b[31m"]}), errors.RemoteCodeRefused, "not a module"),
    "list of three": (
        lambda: repository("own.py", index=INDEX | {"_class_name": ["own", "Own", "x"]}), errors.RemoteCodeRefused, "own"),
    "list of numbers": (
        lambda: repository("own.py", index=INDEX | {"_class_name": [1, 2]}), errors.RemoteCodeRefused, "[1, 2]"),
    "library of the machine": (
        lambda: repository(index=INDEX | {"transformer": ["os", "Own"]}), errors.RemoteCodeRefused, "transformer/os.py"),
    "auto_map elsewhere": (
        lambda: repository(transformer=CONFIGS["transformer"] | {"auto_map": {"AutoModel": "other/repo--own.Own"}}),
        errors.RemoteCodeRefused, "transformer/config.json"),
    "auto_map without a class": (
        lambda: repository(index=INDEX | {"transformer": ["diffusers", "AutoModel"]}, transformer={"auto_map": {"AutoModel": "own"}}),
        errors.RemoteCodeRefused, "transformer/config.json"),
    "blocks elsewhere": (lambda: modular(transformer=["diffusers", "WanTransformer3DModel", ELSEWHERE]), errors.RemoteCodeRefused, "other/repo"),
    "folder outside": (
        lambda: modular(vae=["diffusers", "AutoencoderKLWan", {"repo": None, "subfolder": "../vae"}]), errors.ModelCorrupt, "../vae"),
    "folder of a number": (
        lambda: modular(vae=["diffusers", "AutoencoderKLWan", {"repo": None, "subfolder": 3}]), errors.ModelCorrupt, "3"),
    "own trust": (
        lambda: repository("own.py", index=OWN_INDEX, text_encoder={"trust_remote_code": True}), errors.RemoteCodeRefused, "text_encoder/config.json"),
    "kernel": (
        lambda: repository("own.py", index=OWN_INDEX, vae=CONFIGS["vae"] | {"_attn_implementation_internal": "a/b"}), errors.RemoteCodeRefused, "vae/config.json"),
    "custom_pipeline": (lambda: repository(index=INDEX | {"custom_pipeline": "a/b"}), errors.RemoteCodeRefused, "model_index.json"),
    "unknown class of a library": (
        lambda: repository("own.py", index=OWN_INDEX | {"vae": ["diffusers", "AutoencoderKL"]}), errors.ModelNotCompatible, "AutoencoderKL"),
    "another pipeline of diffusers": (
        lambda: _without(repository(index=INDEX | {"_class_name": "FluxPipeline"}), "pipeline.py"), errors.ModelNotCompatible, "FluxPipeline"),
    "no components": (lambda: repository("own.py", index={"_class_name": ["own", "Own"]}), errors.ModelCorrupt, "components"),
    "pickled weights": (
        lambda: _without(repository("own.py", "transformer/diffusion_pytorch_model.bin", index=OWN_INDEX),
                         "transformer/diffusion_pytorch_model.safetensors"),
        errors.PickleRefused, "transformer"),
    "too many files": (
        lambda: repository(*(f"lib/m{n}.py" for n in range(MAX_CODE_FILES)), "own.py", index=OWN_INDEX), errors.ModelNotCompatible, "Python files"),
    "own pieces that do not fit": (
        lambda: repository(vae={"z_dim": 48}), errors.ModelInvalid, "48"),
    "boundary of an own transformer": (
        lambda: repository("transformer/own.py", index=INDEX | {"transformer": ["own", "Own"], "boundary_ratio": 7}), errors.ModelCorrupt, "7"),
}  # fmt: skip


def _without(found: ModelFacts, path: str) -> ModelFacts:
    return dataclasses.replace(found, files={name: fact for name, fact in found.files.items() if name != path})


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_approval_covers(case: str) -> None:
    make, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        decide(make())
    assert type(caught.value) is error and words in caught.value.message


@pytest.mark.parametrize("field", ["inode", "size", "mtime_ns", "device"])
@pytest.mark.parametrize("path", ["transformer/config.json", "model_index.json"])
def test_a_file_that_is_not_the_hashed_one_is_refused(path: str, field: str) -> None:
    found = repository("own.py", index=OWN_INDEX)
    trust = approval(found)
    other = dataclasses.replace(found.files[path], **{field: 77})
    with pytest.raises(errors.ModelInvalid, match=path.replace(".", r"\.")):
        decide(dataclasses.replace(found, files={**found.files, path: other}), trust)


def test_a_file_that_was_left_out_of_the_tree_is_refused() -> None:
    """Links and hidden files are no part of an approval."""
    found = repository("own.py", index=OWN_INDEX)
    trust = approval(_without(found, "vae/config.json"))
    with pytest.raises(errors.ModelInvalid, match=r"vae/config\.json"):
        decide(found, trust)


@pytest.mark.parametrize("patch", [None, "x", [1, 2], [1, 2, 1000], [1, True, 2], {"a": 1}])
def test_sizes_of_an_own_transformer_are_sound_numbers_whatever_it_says(patch: Any) -> None:
    found = repository(
        "transformer/own.py",
        index=INDEX | {"transformer": ["own", "Own"]},
        transformer={"patch_size": patch},
        vae={"z_dim": 16, "scale_factor_spatial": "8", "scale_factor_temporal": -1},
    )
    decision = decide(repository("own.py", index=OWN_INDEX, transformer={"patch_size": patch}))
    assert (decision.size_multiple, decision.frame_multiple) == (16, 4)
    with pytest.raises(errors.WanCompatError):
        decide(dataclasses.replace(found, files=_without(found, "transformer/own.py").files))
