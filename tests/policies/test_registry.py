"""The shipped registry is whole and consistent; an update can add and never lower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from wan_compat.policies.registry import (
    ALLOWED_PACKAGES,
    COMPATIBILITY_REGISTRY_EXAMPLE,
    SECURITY_FLOORS,
    diff,
    find_model,
    requirements_of,
    version_problem,
)
from wan_compat.policies.registry_document import (
    MAX_DOCUMENT_BYTES,
    RegistryDocument,
    parse_document,
    write_document,
)
from wan_compat.policies.registry_merge import accepted, combine, merge, minimum_of, pruned
from wan_compat.policies.variants import VARIANTS
from wan_compat.protocol.errors import InvalidRequest

SHIPPED_PATH = Path(__file__).parents[2] / "wan_compat" / "data" / "compatibility_registry.json"
SHIPPED = parse_document(SHIPPED_PATH.read_bytes(), "shipped")
A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
S2V = "Wan-AI/Wan2.2-S2V-14B"


def update(models: dict[str, Any] | None = None, **fields: Any) -> RegistryDocument:
    return parse_document(json.dumps({"schema_version": 1, "models": models or {}, **fields}).encode(), "update")


# -- the shipped copy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", VARIANTS)
def test_every_variant_has_an_entry_that_agrees_with_the_vocabulary(slug: str) -> None:
    variant = VARIANTS[slug]
    found = find_model(SHIPPED, slug)
    assert found is not None
    name, entry = found
    assert name == (variant.repository or slug)
    assert entry.variant == slug
    assert entry.pipeline_class == variant.pipeline_class
    assert entry.also_loads_as == variant.also_loads_as
    assert entry.min_diffusers_version == variant.min_diffusers
    assert entry.sources
    assert ("transformer_2" in entry.parameters) == (variant.experts == 2 and bool(entry.parameters))


@pytest.mark.parametrize("name", SHIPPED.models)
def test_every_entry_holds_together(name: str) -> None:
    entry = SHIPPED.models[name]
    assert {
        "pipeline_class",
        "min_diffusers_version",
        "required_dependencies",
        "pipeline_source",
    } <= entry.model_fields_set
    assert {"vram_requirements", "supported_optimizations", "variant"} <= entry.model_fields_set
    if entry.pipeline_class is None:
        assert entry.alternative is not None, "what to use instead"
        assert (entry.required_dependencies, entry.supported_optimizations, entry.pipeline_source) == ((), (), None)
        assert entry.alternative.model is None or SHIPPED.models[entry.alternative.model].pipeline_class is not None
        return
    pipeline = SHIPPED.pipelines[entry.pipeline_class]
    assert entry.pipeline_source is not None and pipeline.module is not None
    assert entry.pipeline_source.endswith(pipeline.module.replace(".", "/") + ".py")
    assert set(entry.also_loads_as) <= set(SHIPPED.pipelines)
    assert entry.alternative is None
    minimums = dict(minimum_of(text) for text in entry.required_dependencies)
    assert set(minimums) <= ALLOWED_PACKAGES
    for package, floor in SECURITY_FLOORS.items():
        assert Version(minimums[package] or "0") >= Version(floor), package
    assert Version(minimums["diffusers"] or "0") >= Version(entry.min_diffusers_version or "0")
    assert Version(pipeline.min_diffusers_version or "0") <= Version(entry.min_diffusers_version or "0")


@pytest.mark.parametrize("name", [name for name, entry in SHIPPED.models.items() if entry.parameters])
def test_figures_follow_from_each_other(name: str) -> None:
    entry = SHIPPED.models[name]
    assert entry.bytes == {part: count * (4 if part == "vae" else 2) for part, count in entry.parameters.items()}
    vram = entry.vram_requirements
    if not entry.memory_per_plan:
        assert (vram.min_mb, vram.plan) == (None, None)
        return
    plans = entry.memory_per_plan
    assert vram.min_mb == plans[vram.plan or ""].vram_mb
    assert vram.recommended_mb == plans[vram.recommended_plan or ""].vram_mb
    weights_mb = sum(entry.bytes.values()) / 1e6
    largest_mb = max(entry.bytes.values()) / 1e6
    needs = {plan: memory.vram_mb for plan, memory in plans.items() if plan != "official"}
    assert needs["none"] is not None and needs["none"] > weights_mb
    assert needs["model"] is not None and largest_mb < needs["model"] < needs["none"]
    assert needs["group"] is not None and 0 < needs["group"] < needs["model"]
    assert needs["full"] == 0
    assert all(memory.basis.startswith(("estimated: ", "reported: ")) for memory in plans.values())


def test_facts_that_users_trip_over() -> None:
    a14b, i2v = SHIPPED.models[A14B], SHIPPED.models["Wan-AI/Wan2.2-I2V-A14B-Diffusers"]
    assert (a14b.min_diffusers_version, a14b.defaults.boundary_ratio, i2v.defaults.boundary_ratio) == (
        "0.35.0",
        0.875,
        0.9,
    )
    assert a14b.parameters["transformer"] == a14b.parameters["transformer_2"] == 14_288_491_584
    assert a14b.memory_per_plan["official"].vram_mb == 80_000
    ti2v = SHIPPED.models["Wan-AI/Wan2.2-TI2V-5B-Diffusers"]
    assert (ti2v.defaults.fps, a14b.defaults.fps, ti2v.defaults.expand_timesteps) == (24, 16, True)
    assert SHIPPED.models["Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"].min_diffusers_version == "0.34.0"
    assert SHIPPED.models["Wan-AI/Wan2.2-Animate-14B-Diffusers"].min_diffusers_version == "0.36.0"
    assert SHIPPED.models["Wan-AI/Wan2.2-Animate-2-14B-Diffusers"].min_diffusers_version == "0.40.0"


def test_originals_name_their_diffusers_repository() -> None:
    entry = SHIPPED.models["Wan-AI/Wan2.2-T2V-A14B"]
    assert entry.pipeline_class is None and entry.alternative is not None
    assert entry.alternative.model == A14B


def test_the_example_is_a_valid_entry_and_agrees_with_the_registry() -> None:
    document = update({name: dict(entry) for name, entry in COMPATIBILITY_REGISTRY_EXAMPLE.items()})
    for field in ("pipeline_class", "min_diffusers_version", "pipeline_source", "vram_requirements"):
        assert getattr(document.models[A14B], field) == getattr(SHIPPED.models[A14B], field)
    assert merge(SHIPPED, document).adjustments == ()


def test_what_is_written_can_be_read() -> None:
    assert parse_document(write_document(SHIPPED), "again") == SHIPPED
    raw = json.loads(write_document(update({"a/b": {"variant": "wan2.2-s2v-14b"}})))
    assert raw == {"schema_version": 1, "models": {"a/b": {"variant": "wan2.2-s2v-14b"}}}, "only what was set"


# -- malformed documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"schema_version": 2}',
        b'{"schema_version": 1, "surprise": 1}',
        b'{"schema_version": 1, "models": []}',
        b'{"schema_version": 1, "models": {"../../etc": {}}}',
        b'{"schema_version": 1, "models": {"a/b/c": {}}}',
        b'{"schema_version": 1, "models": {"a/b": {"pipeline_class": "os.system"}}}',
        b'{"schema_version": 1, "models": {"a/b": {"pipeline_class": ["m", "C"]}}}',
        b'{"schema_version": 1, "models": {"a/b": {"pipeline_source": "https://evil.example/pipeline.py"}}}',
        b'{"schema_version": 1, "models": {"a/b": {"pipeline_source": "https://github.com/huggingface/diffusers/blob/x?y"}}}',
        b'{"schema_version": 1, "models": {"a/b": {"auto_map": {}}}}',
        b'{"schema_version": 1, "models": {"a/b": {"defaults": {"fps": 1e999}}}}',
        b'{"schema_version": 1, "models": {"a/b": {"defaults": {"fps": NaN}}}}',
        b'{"schema_version": 1, "models": {"a/b": {"defaults": {"num_frames": "81"}}}}',
        b'{"schema_version": 1, "models": {"a/b": {"defaults": {"num_frames": 99999999999}}}}',
        b'{"schema_version": 1, "models": {"a/b": {"vram_requirements": {"min_mb": -1}}}}',
        b'{"schema_version": 1, "models": {"a/b": {"min_diffusers_version": "latest"}}}',
        b'{"schema_version": 1, "models": {"a/b": {"revisions": ["main"]}}}',
        b'{"schema_version": 1, "models": {"a/b": {"notes": ["' + b"x" * 1000 + b'"]}}}',
        b'{"schema_version": 1, "pipelines": {"P": {"module": "os"}}}',
        b'{"schema_version": 1, "pipelines": {"P": {"module": "diffusers..x"}}}',
        b'{"schema_version": 1, "models": ' + b'{"a":' * 5000,
        b" " * (MAX_DOCUMENT_BYTES + 1),
    ],
)
def test_a_malformed_document_is_refused_whole(document: bytes) -> None:
    with pytest.raises(InvalidRequest, match="somewhere"):
        parse_document(document, "somewhere")


# -- what an update cannot do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entry", "kind", "field"),
    [
        (A14B, {"min_diffusers_version": "0.21.0"}, "raised", "min_diffusers_version"),
        (A14B, {"required_dependencies": ["diffusers>=0.21.0"]}, "raised", "required_dependencies"),
        (A14B, {"required_dependencies": ["torch>=2.0"]}, "raised", "required_dependencies"),
        (A14B, {"required_dependencies": ["Transformers>=4.25"]}, "raised", "required_dependencies"),
        (A14B, {"required_dependencies": ["diffusers<0.36"]}, "refused", "required_dependencies"),
        (A14B, {"required_dependencies": ["diffusers==0.33.0"]}, "refused", "required_dependencies"),
        (A14B, {"required_dependencies": ["diffusers>=0.38,<0.39"]}, "refused", "required_dependencies"),
        (A14B, {"required_dependencies": ["diffusers @ https://evil.example/d.whl"]}, "refused", "required_dependencies"),
        (A14B, {"required_dependencies": ["diffusers[evil]>=0.42"]}, "refused", "required_dependencies"),
        (A14B, {"required_dependencies": ["wan-pipeline>=1"]}, "refused", "required_dependencies"),
        (A14B, {"required_dependencies": ["-r https://evil.example"]}, "refused", "required_dependencies"),
        (A14B, {"pipeline_class": "WanVACEPipeline"}, "refused", "pipeline_class"),
        (A14B, {"pipeline_class": None}, "refused", "pipeline_class"),
        (A14B, {"also_loads_as": ["EvilPipeline"]}, "refused", "also_loads_as"),
        (A14B, {"variant": "wan9"}, "refused", "variant"),
        (S2V, {"pipeline_class": "WanSpeechToVideoPipeline"}, "refused", "pipeline_class"),
        (S2V, {"pipeline_class": "DiffusionPipeline"}, "refused", "pipeline_class"),
        ("new/model", {"min_diffusers_version": "0.20.0"}, "raised", "min_diffusers_version"),
        ("new/model", {"pipeline_class": "EvilPipeline"}, "refused", "pipeline_class"),
        ("new/model", {"variant": "wan2.2-t2v-a14b", "pipeline_class": "WanVACEPipeline"}, "refused", "pipeline_class"),
    ],
)  # fmt: skip
def test_an_update_cannot_lower_or_widen(name: str, entry: dict[str, Any], kind: str, field: str) -> None:
    merged = merge(SHIPPED, update({name: entry}))
    (adjustment,) = merged.adjustments
    assert (adjustment.kind, adjustment.name, adjustment.field) == (kind, name, field)
    after, before = merged.document.models[name], SHIPPED.models.get(name)
    if before is not None:
        assert after == before
    else:
        assert after.pipeline_class in (None, "WanPipeline")
        assert after.min_diffusers_version in (None, "0.35.0", SECURITY_FLOORS["diffusers"])


def test_a_missing_pipeline_can_be_given_only_by_diffusers_itself() -> None:
    wanted = update({S2V: {"pipeline_class": "WanSpeechToVideoPipeline"}})
    merged = merge(SHIPPED, wanted, known_classes={"WanSpeechToVideoPipeline"})
    assert merged.adjustments == ()
    assert merged.document.models[S2V].pipeline_class == "WanSpeechToVideoPipeline"


def test_pipelines_keep_their_minimum_and_unknown_ones_are_refused() -> None:
    wanted = update(
        pipelines={"WanPipeline": {"min_diffusers_version": "0.1", "optional_args": ["prompt"]}, "EvilPipeline": {}}
    )
    merged = merge(SHIPPED, wanted)
    assert {(item.kind, item.name) for item in merged.adjustments} == {
        ("raised", "WanPipeline"),
        ("refused", "EvilPipeline"),
    }
    pipeline = merged.document.pipelines["WanPipeline"]
    assert (pipeline.min_diffusers_version, pipeline.optional_args) == ("0.33.0", ("prompt",))
    assert pipeline.since == SHIPPED.pipelines["WanPipeline"].since


def test_an_update_can_raise_and_add() -> None:
    merged = merge(
        SHIPPED,
        update({
            A14B: {"required_dependencies": ["diffusers>=0.50.0", "gguf>=0.10"], "min_diffusers_version": "0.36.0"},
            "me/tune": {"variant": "wan2.2-t2v-a14b", "revisions": ["a" * 40]},
        }, serial=4),
    )  # fmt: skip
    assert merged.adjustments == ()
    dependencies = merged.document.models[A14B].required_dependencies
    assert "diffusers>=0.50.0" in dependencies and "gguf>=0.10" in dependencies and "torch>=2.10" in dependencies
    tune = merged.document.models["me/tune"]
    assert (tune.pipeline_class, tune.defaults.boundary_ratio, tune.licence) == ("WanPipeline", 0.875, None)
    assert merged.document.serial == 4


def test_an_update_of_one_value_keeps_its_neighbours() -> None:
    merged = merge(SHIPPED, update({A14B: {"defaults": {"fps": 24}, "memory_per_plan": {"mine": {"vram_mb": 1}}}}))
    entry, before = merged.document.models[A14B], SHIPPED.models[A14B]
    assert entry.defaults == before.defaults.model_copy(update={"fps": 24})
    assert set(entry.memory_per_plan) == {*before.memory_per_plan, "mine"}


def test_an_overlay_keeps_only_what_differs_and_was_taken() -> None:
    wanted = update(
        {
            A14B: {"pipeline_class": "WanPipeline", "min_diffusers_version": "0.1", "defaults": {"fps": 24}},
            S2V: {"pipeline_class": "EvilPipeline"},
            "me/new": {},
        }
    )
    kept = accepted(SHIPPED, wanted)
    assert {item.field for item in kept.adjustments} == {"min_diffusers_version", "pipeline_class"}
    overlay = pruned(SHIPPED, kept.document)
    assert {name: entry.model_fields_set for name, entry in overlay.models.items()} == {
        A14B: {"defaults"},
        "me/new": set(),
    }
    assert merge(SHIPPED, parse_document(write_document(overlay), "overlay")).adjustments == ()


def test_what_the_package_says_again_leaves_the_overlay() -> None:
    """A class whose arguments were once read differently, and now as the package has them."""
    older = update(pipelines={"WanPipeline": {"optional_args": ["prompt"]}})
    newer = update(pipelines={"WanPipeline": {"optional_args": list(SHIPPED.pipelines["WanPipeline"].optional_args)}})
    assert pruned(SHIPPED, combine(older, accepted(SHIPPED, newer).document)).pipelines == {}


def test_what_was_refused_does_not_take_back_what_was_taken_before() -> None:
    known = {"WanSpeechToVideoPipeline"}
    older = update({S2V: {"pipeline_class": "WanSpeechToVideoPipeline"}})
    newer = accepted(SHIPPED, update({S2V: {"pipeline_class": "EvilPipeline"}}), known).document
    assert combine(older, newer).models[S2V].pipeline_class == "WanSpeechToVideoPipeline"


def test_a_newer_overlay_wins_field_by_field() -> None:
    older = update({"a/b": {"defaults": {"fps": 8, "height": 480}, "notes": ["old"]}}, serial=5)
    newer = update({"a/b": {"defaults": {"fps": 24}}, "c/d": {}}, serial=3)
    both = combine(older, newer)
    assert both.models["a/b"].defaults.fps == 24 and both.models["a/b"].defaults.height == 480
    assert both.models["a/b"].notes == ("old",)
    assert ("c/d" in both.models, both.serial) == (True, 5)


# -- differences and looking up --------------------------------------------------------------------------------------------------


def test_a_diff_names_every_change_and_nothing_else() -> None:
    assert diff(SHIPPED, SHIPPED) == ()
    after = merge(SHIPPED, update({A14B: {"defaults": {"fps": 24.0}}, "me/new": {}})).document
    changes = {(change.kind, change.subject, change.name, change.field) for change in diff(SHIPPED, after)}
    assert changes == {("changed", "model", A14B, "defaults"), ("added", "model", "me/new", None)}
    assert {change.kind for change in diff(after, SHIPPED)} == {"changed", "removed"}


@pytest.mark.parametrize(
    "name",
    [
        A14B,
        A14B.lower(),
        "wan2.2-t2v-a14b",
        "Wan2.2-T2V-A14B-Diffusers",
        "/models/Wan2.2-T2V-A14B-Diffusers/",
        "/cache/hub/models--Wan-AI--Wan2.2-T2V-A14B-Diffusers/snapshots/0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_a_model_is_found_by_any_of_its_names(name: str) -> None:
    found = find_model(SHIPPED, name)
    assert found is not None and found[0] == A14B


@pytest.mark.parametrize("name", ["", "/", "..", "no/such", "models--", "Wan-AI", "wan2.2"])
def test_what_is_no_model_is_not_found(name: str) -> None:
    assert find_model(SHIPPED, name) is None


def test_an_argument_that_is_needed_counts_as_required_although_it_has_a_default() -> None:
    needs = requirements_of(SHIPPED, SHIPPED.models["Wan-AI/Wan2.2-I2V-A14B-Diffusers"])
    assert needs.required_args == ["image", "prompt"]
    assert "guidance_scale_2" in needs.optional_args and "prompt" not in needs.optional_args
    assert needs.supports_cpu_offload and needs.min_vram_mb > 0
    assert "diffusers>=0.38.0" in needs.dependencies


@pytest.mark.parametrize(
    ("minimum", "found", "says"),
    [
        ("0.35.0", "0.33.1", 'needs diffusers >= 0.35.0, you have 0.33.1: pip install --upgrade "diffusers>=0.38.0"'),
        ("0.40.0", "0.38.0", 'needs diffusers >= 0.40.0, you have 0.38.0: pip install --upgrade "diffusers>=0.40.0"'),
        ("0.35.0", "0.36.0", "needs diffusers >= 0.38.0 for its security fixes, you have 0.36.0"),
        ("0.35.0", "0.38.0.dev0", "for its security fixes"),
        ("0.40.0", "0.40.0.dev0", None),
        ("0.35.0", "0.42.1", None),
        (None, "0.42.1", None),
        ("0.35.0", None, None),
        ("0.35.0", "weird!", "unreadable version"),
    ],
)
def test_an_old_diffusers_is_named_with_what_to_do(minimum: str | None, found: str | None, says: str | None) -> None:
    problem = version_problem(minimum, found)
    assert (problem is None) if says is None else (problem is not None and says in problem)
