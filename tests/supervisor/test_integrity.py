from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from wan_compat.policies.findings import Severity
from wan_compat.protocol.errors import InvalidRequest, JobCancelled, ModelCorrupt, RefusedByPolicy
from wan_compat.supervisor.hashing import FileChanged, HashCache
from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.integrity import IntegrityReport, require_verified, verify_model

# Signed by the real tool: `model_signing sign key signed_model --private_key ... --signature model.sig` (1.1.1).
SIGNED = Path(__file__).parents[1] / "assets" / "signed_model"
KEY = SIGNED.with_suffix(".pub")
COMMIT = "c" * 40


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(SIGNED, folder)
    return folder


def verify(path: Path, key: Path | None = None) -> IntegrityReport:
    return verify_model(str(path), public_key=str(key) if key else None, cache=HashCache(path.parent / "cache"))


def codes(report: IntegrityReport) -> set[tuple[str, str | None]]:
    return {(item.code, item.path) for item in report.findings}


def test_a_signature_of_the_real_tool_covers_its_files(model: Path) -> None:
    report = verify(model, KEY)
    assert report.findings == ()
    assert report.verified == dict.fromkeys(("README.md", "config.json", "sub/w.bin"), "signature")
    assert report.unverified == ("model.sig",)


def test_without_a_key_a_signature_is_told_and_nothing_is_verified(model: Path) -> None:
    report = verify(model)
    assert codes(report) == {("signature_unverified", "model.sig")}
    assert report.findings[0].severity is Severity.INFO
    assert not report.verified


def test_a_signed_file_that_changed_is_named(model: Path) -> None:
    (model / "sub" / "w.bin").write_bytes(b"Weights")
    report = verify(model, KEY)
    assert codes(report) == {("hash_mismatch", "sub/w.bin")}
    assert "sub/w.bin" not in report.verified


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_a_signature_that_was_changed_is_invalid(part: str, model: Path) -> None:
    bundle = json.loads((model / "model.sig").read_text())
    envelope = bundle["dsseEnvelope"]
    holder = envelope if part == "payload" else envelope["signatures"][0]
    holder[part] = holder[part][:40] + ("A" if holder[part][40] != "A" else "B") + holder[part][41:]
    (model / "model.sig").write_text(json.dumps(bundle))
    report = verify(model, KEY)
    assert codes(report) == {("signature_invalid", "model.sig")}
    assert not report.verified


def test_a_signature_of_another_key_is_invalid(model: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = tmp_path / "other.pub"
    other.write_bytes(
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert codes(verify(model, other)) == {("signature_invalid", "model.sig")}
    # Without the hint, which anybody can take out, the signature itself decides.
    bundle = json.loads((model / "model.sig").read_text())
    bundle["verificationMaterial"]["publicKey"] = {}
    (model / "model.sig").write_text(json.dumps(bundle))
    assert codes(verify(model, other)) == {("signature_invalid", "model.sig")}
    assert verify(model, KEY).verified


def test_a_signature_by_identity_is_not_judged(model: Path) -> None:
    bundle = json.loads((model / "model.sig").read_text())
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": "AA=="}}
    (model / "model.sig").write_text(json.dumps(bundle))
    assert codes(verify(model, KEY)) == {("signature_unverified", "model.sig")}


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{" * 1000, b"{}"])
def test_garbage_in_place_of_a_signature_is_invalid_and_no_crash(content: bytes, model: Path) -> None:
    (model / "model.sig").write_bytes(content)
    assert codes(verify(model, KEY)) == {("signature_invalid", "model.sig")}


def test_a_key_that_is_none_is_the_users_mistake(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        verify(model, tmp_path / "absent")
    with pytest.raises(InvalidRequest, match="PEM"):
        verify(model, model / "README.md")


def test_lists_beside_the_files_show_damage(model: Path) -> None:
    (model / "model.sig").unlink()
    digest = hashlib.sha256(b"weights").hexdigest()
    (model / "SHA256SUMS").write_text(f"{digest}  sub/w.bin\n{'0' * 64}  config.json\n{digest}  gone.bin\n")
    (model / "sub" / "w.bin.sha256").write_text(digest)
    (model / "manifest.json").write_text(json.dumps({"files": {"README.md": "no hash"}}))
    report = verify(model)
    assert codes(report) == {
        ("hash_mismatch", "config.json"),
        ("manifest_file_missing", "SHA256SUMS"),
        ("manifest_unusable", "manifest.json"),
    }
    assert report.verified == {"sub/w.bin": "list"}


def test_names_in_the_hub_cache_are_what_the_files_are_held_to(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    large, small = b"w" * 5000, b"{}"
    names = {
        "w.safetensors": (hashlib.sha256(large).hexdigest(), large),
        "config.json": (hashlib.sha1(b"blob 2\0{}").hexdigest(), small),
    }
    for path, (name, content) in names.items():
        (repository / "blobs" / name).write_bytes(content)
        (snapshot / path).symlink_to(f"../../blobs/{name}")
    assert verify(snapshot).verified == dict.fromkeys(sorted(names), "hub")
    for path, (name, content) in names.items():
        (repository / "blobs" / name).write_bytes(content.swapcase() if content != small else b"[]")
        assert ("hash_mismatch", path) in codes(verify(snapshot))
    assert not verify(snapshot).verified


def test_hashing_ends_when_its_caller_has_enough(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "cache"))
    facts = read_facts(str(model)).files

    def stop(_done: int, _total: int) -> None:
        raise JobCancelled("enough")

    with pytest.raises(JobCancelled, match="enough"):
        require_verified(str(model), [facts["config.json"]], public_key=str(KEY), progress=stop)


def test_require_manifest_wants_a_hash_for_every_file_that_would_be_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "cache"))
    facts = read_facts(str(model)).files
    admitted = [facts["config.json"], facts["sub/w.bin"]]
    with pytest.raises(RefusedByPolicy, match="nobody gave a hash for 2"):
        require_verified(str(model), admitted)
    require_verified(str(model), admitted, public_key=str(KEY))
    (model / "config.json").write_text('{"a": 1}')
    with pytest.raises(FileChanged):
        require_verified(str(model), admitted, public_key=str(KEY))
    (model / "config.json").write_text('{"a": 2}')
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        require_verified(str(model), admitted, public_key=str(KEY))
