"""The store keeps what was approved, whole; a damaged, foreign or shared one is an error and never an answer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wan_compat.policies.trust import RepositoryTree, TrustedFile, TrustGrant
from wan_compat.protocol.errors import InvalidRequest, StateCorrupt, StateUnsafe
from wan_compat.supervisor import trust_store
from wan_compat.supervisor.audit_log import AuditEvent, AuditLog
from wan_compat.supervisor.trust_store import STORE_NAME, TrustStore, make_grant

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def grant(source: str = "org/model", content: str = "0", revision: str | None = None) -> TrustGrant:
    files = (TrustedFile(path="pipeline.py", size=1, sha256=content * 64),)
    return make_grant(RepositoryTree(source, revision, "/m", files), imports=["torch"], risks=["python-exec: exec"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(folder: Path) -> TrustStore:
    return TrustStore(folder)


def test_an_absent_store_has_no_grants_and_is_not_made(store: TrustStore, folder: Path) -> None:
    assert store.grants() == () and not folder.exists()


def test_what_was_added_comes_back_private_and_recorded(store: TrustStore, folder: Path) -> None:
    first, second = grant(), grant("/models/x")
    store.add(first)
    store.add(second)
    assert TrustStore(folder).grants() == (first, second)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    recorded = AuditLog(folder).entries()
    assert [entry.event for entry in recorded] == [AuditEvent.TRUST_GRANTED] * 2
    assert recorded[0].fields["tree_hash"] == first.tree_hash
    assert first.approved_by == os.geteuid() and first.approved_at.endswith("+00:00")


def test_a_new_approval_of_the_same_revision_replaces_the_old_one(store: TrustStore) -> None:
    store.add(grant())
    store.add(grant(content="1"))
    store.add(grant(revision="b"))
    assert [(known.revision, known.files[0].sha256) for known in store.grants()] == [(None, "1" * 64), ("b", "0" * 64)]


@pytest.mark.parametrize("by", ["source", "hash", "short hash", "path"])
def test_removing_names_a_source_a_path_or_a_hash(by: str, store: TrustStore, folder: Path, tmp_path: Path) -> None:
    kept, gone = grant("org/other", "1"), grant(str(tmp_path))
    for known in (kept, gone):
        store.add(known)
    name = {
        "source": gone.source,
        "hash": gone.tree_hash,
        "short hash": gone.tree_hash[:8].upper(),
        "path": str(tmp_path / ".." / tmp_path.name),
    }[by]
    assert store.remove(name) == (gone,) and store.grants() == (kept,)
    assert AuditLog(folder).entries()[-1].event == AuditEvent.TRUST_REMOVED


@pytest.mark.parametrize("name", ["org", "", "0", "org/model/x"])
def test_removing_what_is_not_there_removes_nothing(name: str, store: TrustStore) -> None:
    store.add(grant())
    assert store.remove(name) == () and len(store.grants()) == 1


def test_a_short_prefix_of_a_hash_is_no_name(store: TrustStore) -> None:
    store.add(grant())
    assert store.remove(grant().tree_hash[:7]) == ()


def valid() -> dict[str, object]:
    return {"schema_version": 1, "grants": [grant().model_dump(mode="json")]}


def broken_grant(**fields: object) -> bytes:
    return json.dumps({"schema_version": 1, "grants": [grant().model_dump(mode="json") | fields]}).encode()


DAMAGE = {
    "empty": b"",
    "cut off": json.dumps(valid()).encode()[:-20],
    "no JSON": b"\xff\xfe",
    "null": b"null",
    "an array": b"[]",
    "an unknown key": json.dumps(valid() | {"extra": 1}).encode(),
    "no version": json.dumps({"grants": []}).encode(),
    "another version": json.dumps({"schema_version": 2, "grants": []}).encode(),
    "a hash of other files": broken_grant(tree_hash="0" * 64),
    "another file list": broken_grant(files=[{"path": "evil.py", "size": 1, "sha256": "0" * 64}]),
    "a number as text": broken_grant(approved_by="0"),
    "a true as number": broken_grant(approved_by=True),
    "deep": b'{"schema_version":1,"grants":' + b"[" * 100_000,
    "too many": json.dumps({"schema_version": 1, "grants": [0] * 1001}).encode(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_store_is_an_error_for_every_use_and_is_kept(name: str, store: TrustStore, folder: Path) -> None:
    folder.mkdir(mode=0o700)
    store.path.write_bytes(DAMAGE[name])
    store.path.chmod(0o600)
    for use in (store.grants, lambda: store.add(grant()), lambda: store.remove("org/model")):
        with pytest.raises(StateCorrupt) as caught:
            use()
        assert f"mv {store.path}" in (caught.value.hint or "")
    assert store.path.read_bytes() == DAMAGE[name]
    assert AuditLog(folder).entries() == ()


def test_a_store_beyond_its_bound_is_an_error(store: TrustStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(grant())
    size = store.path.stat().st_size
    monkeypatch.setattr(trust_store, "MAX_STORE_BYTES", size + 10)
    with pytest.raises(InvalidRequest, match="grow beyond"):
        store.add(grant("org/other"))
    assert [known.source for known in store.grants()] == ["org/model"]
    monkeypatch.setattr(trust_store, "MAX_STORE_BYTES", size - 1)
    with pytest.raises(StateCorrupt):
        store.grants()


def test_a_full_store_says_what_to_do(store: TrustStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_store, "MAX_GRANTS", 1)
    store.add(grant())
    with pytest.raises(InvalidRequest, match="has 1 approvals"):
        store.add(grant("org/other"))


@pytest.mark.parametrize("what", ["store", "lock", "folder", "log"])
def test_a_store_that_others_can_write_says_neither_yes_nor_no(what: str, store: TrustStore, folder: Path) -> None:
    store.add(grant())
    path = {"store": store.path, "lock": folder / f"{STORE_NAME}.lock", "folder": folder, "log": folder / "audit.jsonl"}
    path[what].chmod(0o777)
    with pytest.raises(StateUnsafe, match="written by others"):
        store.add(grant("org/other"))
    if what in ("store", "folder"):
        with pytest.raises(StateUnsafe, match="written by others"):
            store.grants()


def test_without_a_record_there_is_no_approval(store: TrustStore, folder: Path) -> None:
    store.add(grant())
    (folder / "audit.head").unlink()
    with pytest.raises(StateCorrupt, match="audit log"):
        store.add(grant("org/other"))
    assert [known.source for known in store.grants()] == ["org/model"]


def test_processes_that_approve_at_once_lose_nothing(store: TrustStore, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.programs.trust_approver", str(folder)]
    running = [subprocess.Popen([*command, name, "12"], cwd=REPOSITORY) for name in ("first", "second")]
    assert [process.wait(60) for process in running] == [0, 0]
    sources = {known.source for known in store.grants()}
    assert sources == {f"{name}/{number}" for name in ("first", "second") for number in range(12)}
    verdict = AuditLog(folder).verify()
    assert verdict.intact and verdict.entries == 24


def test_kill_9_while_approving_leaves_a_whole_store(store: TrustStore, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.programs.trust_approver", str(folder), "killed", "100000"]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        while not store.path.exists() or len(store.grants()) < 5:
            assert process.poll() is None
        process.kill()
    known = len(store.grants())
    assert known >= 5 and AuditLog(folder).verify().intact
    store.add(grant())
    assert len(store.grants()) == known + 1
