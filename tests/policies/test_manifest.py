from __future__ import annotations

from typing import Any

import pytest

from wan_compat.policies.manifest import (
    MAX_ENTRIES,
    Unusable,
    read_bundle,
    read_checksums,
    read_manifest,
    read_statement,
)

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        (f"{A}  vae/config.json\n{B} *w.safetensors\n", "SHA256SUMS", {"vae/config.json": A, "w.safetensors": B}),
        (f"# made today\n\n{A.upper()}  ./a b\n", "SHA256SUMS", {"a b": A}),
        (f"SHA256 (w.safetensors) = {A}\n", "SHA256SUMS", {"w.safetensors": A}),
        (f"{A}\n", "vae/w.safetensors.sha256", {"w.safetensors": A}),
        ("", "SHA256SUMS", {}),
    ],
)
def test_checksum_lists_are_read_as_the_tools_write_them(text: str, name: str, found: dict[str, str]) -> None:
    assert read_checksums(text, name) == found


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        f"{A}  ../x",
        f"{A}  /etc/passwd",
        f"{A}  a/../b",
        f"{A}  a\\b",
        f"{A}  x\n{B}  x",
        f"{A}  {'x' * 2000}",
        f"{A}  x\n" * (MAX_ENTRIES + 1),
        f"{A}\n",
    ],
)
def test_what_is_no_checksum_list_is_not_half_used(text: str) -> None:
    with pytest.raises(Unusable):
        read_checksums(text, "SHA256SUMS")


def test_manifests_of_both_forms_are_read_and_others_are_none() -> None:
    assert read_manifest({"files": {"a": A, "b": {"sha256": B}}}) == {"a": A, "b": B}
    assert read_manifest({"files": [{"path": "a", "sha256": A}, {"name": "b", "sha256": B}]}) == {"a": A, "b": B}
    assert read_manifest({"icons": []}) is None
    assert read_manifest({"files": ["a"]}) is None
    for files in ({"a": 7}, {"a": "b"}, {"../a": A}, [{"sha256": A}], {"": A}):
        with pytest.raises(Unusable):
            read_manifest({"files": files})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"dsseEnvelope": [], "verificationMaterial": {}},
        {"dsseEnvelope": {"signatures": []}, "verificationMaterial": {}},
        {"dsseEnvelope": {"signatures": [{"sig": "AA=="}], "payloadType": "text/plain"}, "verificationMaterial": {}},
        {
            "dsseEnvelope": {
                "signatures": [{"sig": 1}],
                "payloadType": "application/vnd.in-toto+json",
                "payload": "AA==",
            },
            "verificationMaterial": {},
        },
    ],
)
def test_what_is_no_bundle_is_told(document: dict[str, Any]) -> None:
    with pytest.raises(Unusable):
        read_bundle(document)


def test_a_statement_that_does_not_add_up_is_refused() -> None:
    item = {"name": "a", "algorithm": "sha256", "digest": A}
    statement = {
        "predicateType": "https://model_signing/signature/v1.0",
        "subject": [{"digest": {"sha256": B}}],
        "predicate": {"serialization": {"method": "files"}, "resources": [item]},
    }
    with pytest.raises(Unusable, match="add up"):
        read_statement(statement)
    for change in (
        {"predicateType": "x"},
        {"predicate": {"serialization": {"method": "shards"}, "resources": [item]}},
        {"predicate": {"serialization": {"method": "files"}, "resources": []}},
        {"predicate": {"serialization": {"method": "files"}, "resources": [item | {"algorithm": "md5"}]}},
        {"predicate": {"serialization": {"method": "files"}, "resources": [item | {"name": "../a"}]}},
        {"predicate": {"serialization": {"method": "files"}, "resources": [7]}},
    ):
        with pytest.raises(Unusable):
            read_statement(statement | change)
