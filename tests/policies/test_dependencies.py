"""What a model may have installed for it: tables of needs, of what is there, and of the plan that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from wan_compat.policies.architecture import Architecture
from wan_compat.policies.dependencies import (
    ALLOWED,
    NEVER_INSTALLED,
    Feature,
    Need,
    features_of,
    needs_of,
    require_allowed,
    validate_code_version,
)
from wan_compat.policies.dependency_lock import Lock, parse_lock
from wan_compat.policies.dependency_plan import Action, Have, InstallPlan, Interpreter, plan_installation
from wan_compat.policies.facts import ModelFacts, WeightFile
from wan_compat.policies.registry import ALLOWED_PACKAGES, SECURITY_FLOORS
from wan_compat.protocol.errors import InvalidRequest, RefusedByPolicy

MARKERS = {
    "python_version": "3.11", "python_full_version": "3.11.7", "platform_machine": "x86_64", "sys_platform": "linux",
    "os_name": "posix", "platform_system": "Linux", "implementation_name": "cpython", "platform_release": "",
    "platform_version": "", "implementation_version": "3.11.7", "platform_python_implementation": "CPython",
}  # fmt: skip
INTERPRETER = Interpreter(
    ("cp311-cp311-manylinux_2_28_x86_64", "cp311-cp311-manylinux2014_x86_64", "cp39-abi3-manylinux2014_x86_64", "py3-none-any"),
    MARKERS,
)  # fmt: skip
BASE = {
    "torch": Have("2.13.0+cpu"),
    "diffusers": Have("0.42.1", ("numpy",)),
    "transformers": Have("5.23.0", ("tokenizers<0.24,>=0.23",)),
    "tokenizers": Have("0.23.3"),
    "accelerate": Have("1.15.0"),
    "safetensors": Have("0.8.0"),
    "sentencepiece": Have("0.2.3"),
    "ftfy": Have("6.3.1"),
    "pillow": Have("13.0.0"),
    "numpy": Have("2.4.6"),
}


def locked(version: str, *requires: str, tag: str = "py3-none-any", python: str = "") -> dict[str, object]:
    return {"version": version, "requires": list(requires), "requires_python": python, "tag": tag}


def make_lock(**packages: dict[str, object]) -> Lock:
    made = {}
    for key, entry in packages.items():
        name = key.replace("_", "-")
        file = f"{key}-{entry['version']}-{entry.pop('tag')}.whl"
        made[name] = {**entry, "wheels": [{"filename": file, "sha256": "0" * 64, "bytes": 1000}]}
    import json

    return parse_lock(json.dumps({"schema_version": 1, "packages": made}).encode(), "test")


def plan(*requirements: str, lock: Lock, have: dict[str, Have] | None = None) -> InstallPlan:
    needs = [Need(text, "the model") for text in requirements]
    return plan_installation(needs, BASE if have is None else have, lock, INTERPRETER)


def actions(found: InstallPlan) -> dict[str, str]:
    return {step.name: step.action.value for step in found.steps}


def test_what_is_there_is_kept_and_makes_no_environment():
    found = plan("diffusers>=0.40", "ftfy", lock=make_lock(diffusers=locked("0.42.1")))
    assert actions(found) == {"diffusers": "keep", "ftfy": "keep"}
    assert found.changes == () and found.conflicts == ()


def test_a_missing_package_brings_what_it_needs_itself_and_nothing_else():
    lock = make_lock(
        optimum_quanto=locked("0.2.7", "torch>=2.6", "ninja", "numpy"), ninja=locked("1.13"), peft=locked("0.21")
    )
    found = plan("optimum-quanto", lock=lock)
    assert actions(found) == {"optimum-quanto": "install", "ninja": "install", "torch": "keep", "numpy": "keep"}
    assert next(step for step in found.steps if step.name == "ninja").wanted_by == ("optimum-quanto 0.2.7",)
    assert found.download_bytes == 2000


def test_markers_decide_for_the_interpreter_that_is_asked_about():
    lock = make_lock(gguf=locked("0.19", "numpy; python_version < '3.11'", "typing-x; sys_platform == 'win32'"))
    assert actions(plan("gguf", lock=lock)) == {"gguf": "install"}


def test_an_old_library_is_upgraded_together_with_what_the_new_one_needs():
    lock = make_lock(transformers=locked("5.23.0", "tokenizers<0.24,>=0.23"), tokenizers=locked("0.23.3"))
    have = BASE | {"transformers": Have("4.57.0", ("tokenizers<0.23",)), "tokenizers": Have("0.22.0")}
    found = plan("transformers", lock=lock, have=have)
    assert actions(found) == {"transformers": "upgrade", "tokenizers": "upgrade"}
    assert found.conflicts == ()


# What is asked, what is there beyond BASE, what is locked; words that the answer must have.
CONFLICTS = {
    "the model wants more than is locked": (["peft>=99"], {}, {"peft": locked("0.21")}, ["the model wants peft>=99", "0.21"]),
    "two disagree": (
        ["gguf>=0.20", "gguf<0.15"], {}, {"gguf": locked("0.19")}, ["version conflict", "gguf>=0.20", "gguf<0.15"]),
    "a floor for security": (
        ["transformers<5"], {}, {"transformers": locked("5.23.0")}, ["wan-compat wants transformers>=5.3.0", "transformers<5"]),
    "a newer one would be lowered": (
        ["ftfy<6.4"], {"ftfy": Have("6.9")}, {"ftfy": locked("6.3.1")}, ["installed is 6.9", "would lower"]),
    "an installed one does not get along": (
        ["peft"], {"tokenizers": Have("0.23.1")}, {"peft": locked("0.21", "tokenizers>=0.25"), "tokenizers": locked("0.25"),
        "transformers": locked("5.23.0")},
        ["the installed transformers 5.23.0 wants tokenizers", "peft 0.21 wants tokenizers>=0.25"]),
    "torch is never touched": (["torch>=9"], {}, {}, ["the model wants torch>=9", "never installed by wan-compat"]),
    "not locked": (["bitsandbytes"], {}, {}, ["no locked release"]),
    "no wheel for this machine": (
        ["bitsandbytes"], {}, {"bitsandbytes": locked("0.50.2", tag="py3-none-manylinux_2_24_aarch64")}, ["no wheel for this machine"]),
    "another Python": (["gguf"], {}, {"gguf": locked("0.19", python=">=3.14")}, ["needs Python >=3.14"]),
    "outside the list": (["wan-pipeline"], {}, {"wan_pipeline": locked("1.0")}, ["wan-pipeline", "not on the list"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFLICTS)
def test_a_plan_that_cannot_hold_says_who_disagrees_with_whom(case):
    requirements, have, packages, words = CONFLICTS[case]
    found = plan(
        *requirements, lock=make_lock(**{name: dict(entry) for name, entry in packages.items()}), have=BASE | have
    )
    assert found.conflicts
    for word in words:
        assert word in " ".join(found.conflicts)
    assert all(step.wheel is None for step in found.steps if step.action is Action.REFUSE)


def test_equal_plans_make_one_environment_and_other_bytes_another():
    one, same = (plan("gguf", lock=make_lock(gguf=locked("0.19"))) for _ in range(2))
    other = plan("gguf", lock=make_lock(gguf=locked("0.20")))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    elsewhere = plan_installation(
        [Need("gguf", "the model")], BASE, make_lock(gguf=locked("0.19")),
        Interpreter(("cp312-cp312-manylinux_2_28_x86_64", "py3-none-any"), MARKERS),
    )  # fmt: skip
    assert elsewhere.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "text",
    ["wan-pipeline", "Wan_Pipeline==1.0", "diffuser", "xformers", "numpy", "peft @ https://example.org/peft.whl", "gguf[gui]",
     "gguf; python_version > '3'", "--index-url https://example.org", "-r other.txt", "", "a b", "peft\x1b[31m", "imageio"],
)  # fmt: skip
def test_names_outside_the_list_are_refused_whole(text):
    with pytest.raises(RefusedByPolicy) as caught:
        require_allowed(["peft", text], "you")
    assert caught.value.exit_code == 5 and "pip install" not in str(caught.value) + str(caught.value.fixes)
    assert "\x1b" not in caught.value.message


def test_names_are_taken_in_any_spelling():
    assert [need.requirement for need in require_allowed(["Optimum.Quanto>=0.2.6", "PEFT"], "you")] == [
        "Optimum.Quanto>=0.2.6",
        "PEFT",
    ]


def facts_with(documents=None, weights=None) -> ModelFacts:
    return ModelFacts(root="/m", files={}, documents=documents or {}, weights=weights or {})


def architecture(layout="diffusers") -> Architecture:
    return Architecture(
        True, "wan_t2v", "2.1", "wan2.1-t2v-1.3b", (), 1.0, (), layout, "WanPipeline", (), (), 3, {}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "layout", "expected"),
    [
        (facts_with(), "diffusers", set()),
        (facts_with(), "lora", set()),  # `generate --lora` needs no package
        (facts_with(), "gguf", {Feature.GGUF}),
        (facts_with(weights={"t.gguf": WeightFile("t.gguf", "gguf", {}, {}, 0)}), "diffusers", {Feature.GGUF}),
        (facts_with({"transformer/config.json": {"quantization_config": {"quant_method": "bitsandbytes"}}}), "diffusers", {Feature.BITSANDBYTES}),
        (facts_with({"transformer/config.json": {"quantization_config": {"quant_method": "torchao"}}}), "diffusers", {Feature.TORCHAO}),
        (facts_with({"a/config.json": {"quantization_config": {"quant_method": "quanto"}}}), "diffusers", {Feature.QUANTO}),
        (facts_with({"a/config.json": {"quantization_config": {"quant_method": ["x"]}}}), "diffusers", set()),
        (facts_with({"a/config.json": {"quantization_config": {"quant_method": "evil-package"}}}), "diffusers", set()),
        (facts_with({"a/config.json": {"quantization_config": "bitsandbytes"}}), "diffusers", set()),
    ],
)  # fmt: skip
def test_features_follow_from_what_lies_in_a_model(facts, layout, expected):
    assert features_of(facts, architecture(layout)) == expected


def test_needs_are_the_workers_the_registrys_and_the_features():
    needs = needs_of("m", ["diffusers>=0.40.0"], [Feature.LORA])
    assert Need("diffusers>=0.40.0", "m") in needs and Need("peft>=0.20.0", "lora of m") in needs
    assert not any(need.requirement.startswith("gguf") for need in needs)


@pytest.mark.parametrize(
    ("local", "model", "compatible", "required"),
    [
        ("0.42.1", "0.35.0.dev0", True, ">=0.35.0"),
        ("0.42.1", "0.42.1", True, ">=0.42.1"),
        ("0.43.0.dev0", "0.43.0", True, ">=0.43.0"),
        ("0.38.0", "0.40.0", False, ">=0.40.0"),
        ("0.36.0", "0.35.0", False, ">=0.35.0"),  # below the floor for security
        ("0.42.1", ">=0.38,<0.50", True, None),
        ("", "0.35.0", False, ">=0.35.0"),
        ("0.42.1", "newest", False, None),
        ("0.42.1", "0.x", False, None),
        ("not-a-version", "0.35.0", False, ">=0.35.0"),
    ],
)
def test_code_versions(local, model, compatible, required):
    found = validate_code_version(local, model)
    assert found.is_compatible is compatible and found.reason
    assert required is None or found.required == required


# ---- the lock that comes along -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Lock:
    path = Path(__file__).resolve().parents[2] / "wan_compat" / "data" / "dependencies.lock.json"
    return parse_lock(path.read_bytes(), str(path))


def test_the_shipped_lock_has_every_package_of_the_list_above_its_floor(shipped):
    assert set(ALLOWED) <= ALLOWED_PACKAGES
    assert ALLOWED.keys() - NEVER_INSTALLED <= shipped.packages.keys()
    assert not NEVER_INSTALLED & shipped.packages.keys()
    for name, allowed in ALLOWED.items():
        if name not in NEVER_INSTALLED:
            assert SpecifierSet(allowed.specifier).contains(shipped.packages[name].version), name
    for name, floor in SECURITY_FLOORS.items():
        if name not in NEVER_INSTALLED:
            assert Version(shipped.packages[name].version) >= Version(floor)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_shipped_lock_holds_from_nothing_but_torch(shipped, python, machine):
    tag = f"cp{python.replace('.', '')}"
    minor = int(python.split(".")[1])
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in range(36, 16, -1)] + [f"manylinux2014_{machine}"]
    tags = [f"{tag}-{abi}-{platform}" for abi in (tag, "none") for platform in platforms]
    tags += [f"cp3{older}-abi3-{platform}" for older in range(minor, 5, -1) for platform in platforms]
    tags += [f"py3-none-{platform}" for platform in platforms] + ["py3-none-any"]
    markers = MARKERS | {"python_version": python, "python_full_version": f"{python}.1", "platform_machine": machine}
    found = plan_installation(
        needs_of("m", [], Feature), {"torch": Have("2.13.0")}, shipped, Interpreter(tuple(tags), markers)
    )
    assert found.conflicts == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"{", b"[]", b'{"packages": {"a": {"version": "1", "wheels": []}}}',
        b'{"packages": {"a": {"version": "1", "wheels": [{"filename": "b-1-py3-none-any.whl", "sha256": "%s", "bytes": 1}]}}}' % (b"0" * 64),
        b'{"packages": {"a": {"version": "2", "wheels": [{"filename": "a-1-py3-none-any.whl", "sha256": "%s", "bytes": 1}]}}}' % (b"0" * 64),
        b'{"packages": {"a": {"version": "1", "wheels": [{"filename": "a-1-py3-none-any.whl", "sha256": "0", "bytes": 1}]}}}',
        b'{"packages": {"a": {"version": "1", "wheels": [{"filename": "../a-1.whl", "sha256": "%s", "bytes": 1}]}}}' % (b"0" * 64),
        b'{"packages": {}, "more": 1}', b" " * (5 << 20),
    ],
)  # fmt: skip
def test_a_lock_is_taken_whole_or_not_at_all(raw):
    with pytest.raises(InvalidRequest):
        parse_lock(raw, "test")
