"""An approval covers one tree of one repository at one revision, to the byte."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wan_compat.policies import trust
from wan_compat.policies.trust import (
    RepositoryTree,
    TreeDifference,
    TrustedFile,
    TrustGrant,
    TrustOutcome,
    compare_trees,
    decide_trust,
    must_hash,
    tree_hash,
)
from wan_compat.protocol.values import Mode


def file(path: str, content: str = "x") -> TrustedFile:
    return TrustedFile(path=path, size=len(content), sha256=hashlib.sha256(content.encode()).hexdigest())


FILES = (file("model_index.json"), file("pipeline.py", "class P: pass"), file("vae/config.json"))
TREE = RepositoryTree("org/model", "a" * 40, "/models/m", FILES)


def grant(tree: RepositoryTree = TREE, **fields: object) -> TrustGrant:
    defaults: dict[str, object] = {
        "source": tree.source,
        "revision": tree.revision,
        "tree_hash": tree.hash,
        "files": tree.files,
        "approved_at": "2026-11-01T00:00:00.000+00:00",
        "approved_by": 1000,
        "tool_version": "0.1",
    }
    return TrustGrant(**(defaults | fields))


def test_a_grant_covers_the_tree_that_was_approved() -> None:
    decision = decide_trust(Mode.TRUST, TREE, [grant()])
    assert decision.outcome is TrustOutcome.GRANTED and decision.runs_code and decision.grant == grant()


def test_safe_mode_runs_no_code_whatever_was_granted() -> None:
    decision = decide_trust(Mode.SAFE, TREE, [grant()])
    assert decision.outcome is TrustOutcome.NOT_NEEDED and not decision.runs_code


def test_nothing_approved_is_refused() -> None:
    decision = decide_trust(Mode.TRUST, TREE, [])
    assert decision.outcome is TrustOutcome.REFUSED and decision.grant is None


CHANGES = {
    "a changed byte": ((*FILES[:1], file("pipeline.py", "class P: pasS"), *FILES[2:]), "changed: pipeline.py"),
    "a changed configuration": ((*FILES[:2], file("vae/config.json", "y")), "changed: vae/config.json"),
    "an added file": ((*FILES, file("z.py")), "added: z.py"),
    "a removed file": (FILES[1:], "removed: model_index.json"),
    "a renamed file": ((file("other.json"), *FILES[1:]), "added: other.json; removed: model_index.json"),
    "a size alone": (
        (*FILES[:2], FILES[2].model_copy(update={"size": 2})),
        "changed: vae/config.json",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_and_named(name: str) -> None:
    files, shown = CHANGES[name]
    decision = decide_trust(Mode.TRUST, dataclasses.replace(TREE, files=files), [grant()])
    assert decision.outcome is TrustOutcome.REFUSED
    assert shown in decision.reason and decision.difference


@pytest.mark.parametrize(
    "other", [{"source": "org/other"}, {"source": "/models/m"}, {"revision": "b" * 40}, {"revision": None}]
)
def test_nothing_is_inherited_by_another_repository_or_revision(other: dict[str, str | None]) -> None:
    assert decide_trust(Mode.TRUST, dataclasses.replace(TREE, **other), [grant()]).outcome is TrustOutcome.REFUSED  # type: ignore[arg-type]


def test_another_revision_is_named_with_its_difference() -> None:
    tree = dataclasses.replace(TREE, revision="b" * 40, files=(*FILES, file("z.py")))
    decision = decide_trust(Mode.TRUST, tree, [grant()])
    assert "a" * 40 in decision.reason and "b" * 40 in decision.reason and "added: z.py" in decision.reason


def test_the_difference_is_taken_from_the_same_revision_first_then_from_the_latest() -> None:
    old = grant(approved_at="2026-01-01", revision="c" * 40)
    new = grant(approved_at="2026-02-01", revision="d" * 40)
    same = grant(approved_at="2025-01-01")
    assert trust.nearest_grant(TREE, [old, new]) == new
    assert trust.nearest_grant(TREE, [old, same, new]) == same
    assert trust.nearest_grant(TREE, [grant(source="org/other")]) is None


def test_the_tree_hash_does_not_depend_on_the_order() -> None:
    assert tree_hash(FILES) == tree_hash(reversed(FILES)) == TREE.hash


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
trees = st.dictionaries(names, st.integers(0, 99), min_size=1, max_size=6)


@given(trees, trees)
def test_equal_hashes_mean_equal_trees(first: dict[str, int], second: dict[str, int]) -> None:
    def files(tree: dict[str, int]) -> list[TrustedFile]:
        return [TrustedFile(path=path, size=size, sha256=None) for path, size in tree.items()]

    same = tree_hash(files(first)) == tree_hash(files(second))
    assert same == (first == second) == (not compare_trees(files(first), files(second)))


@pytest.mark.parametrize(
    "fields",
    [
        {"tree_hash": "0" * 64},
        {"tree_hash": "nonsense"},
        {"files": ()},
        {"files": (*FILES, FILES[0])},
        {"files": tuple(reversed(FILES))},
        {"unknown": 1},
        {"approved_by": -1},
        {"approved_by": "1000"},
        {"source": ""},
        {"imports": ("x" * 301,)},
        {"risks": tuple("abcdefghij" * 51)},
    ],
    ids=str,
)
def test_a_grant_that_contradicts_itself_or_its_bounds_does_not_exist(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        grant(**fields)


@pytest.mark.parametrize(
    ("path", "size", "hashed"),
    [
        ("pipeline.py", 1 << 40, True),
        ("weights.bin", 1 << 40, True),
        ("transformer/model.safetensors", trust.WEIGHT_HASH_LIMIT_BYTES, True),
        ("transformer/model.safetensors", trust.WEIGHT_HASH_LIMIT_BYTES + 1, False),
        ("model.Q4_K.GGUF", 1 << 40, False),
        ("model.safetensors.index.json", 1 << 40, True),
        ("model.safetensors.py", 1 << 40, True),
    ],
)
def test_only_large_weights_are_bound_without_their_content(path: str, size: int, hashed: bool) -> None:
    assert must_hash(path, size) is hashed


def test_a_long_difference_is_cut() -> None:
    text = TreeDifference(added=tuple(f"f{number}.py" for number in range(25))).describe()
    assert "f9.py and 15 more" in text and "f10.py" not in text
