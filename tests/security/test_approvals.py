"""An approval says yes to one thing only; what is tried here is to get more out of it. [T13, T16]"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from wan_compat import Supervisor
from wan_compat.policies.trust import tree_hash
from wan_compat.protocol import errors
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.settings import load_settings
from wan_compat.supervisor.state_health import examine_state
from wan_compat.supervisor.trust_gate import require_trust
from wan_compat.supervisor.trust_store import TrustStore, make_grant

COMMIT = "c" * 40


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "wan-compat"


def snapshot(cache: Path, code: str, commit: str = COMMIT) -> Path:
    """A repository as the Hugging Face cache keeps it."""
    base = cache / "models--org--name"
    (base / "blobs").mkdir(parents=True, exist_ok=True)
    folder = base / "snapshots" / commit
    folder.mkdir(parents=True)
    for name, content in (("model_index.json", '{"_class_name": ["pipeline", "P"]}'), ("pipeline.py", code)):
        blob = base / "blobs" / f"{commit[:4]}-{name}"
        blob.write_text(content)
        (folder / name).symlink_to(f"../../blobs/{blob.name}")
    return folder


@pytest.fixture
def approved(state: Path, tmp_path: Path) -> Path:
    folder = snapshot(tmp_path / "hub", "x = 1\n")
    TrustStore().add(make_grant(read_tree(str(folder)), imports=[], risks=[]))
    assert require_trust(str(folder), Mode.TRUST).runs_code
    return folder


def refused(path: Path) -> None:
    with pytest.raises(errors.TrustRefused):
        require_trust(str(path), Mode.TRUST)


def test_the_same_repository_and_commit_with_other_code_in_another_cache(approved: Path, tmp_path: Path) -> None:
    refused(snapshot(tmp_path / "other", "x = 2\n"))


def test_the_same_code_under_another_commit(approved: Path, tmp_path: Path) -> None:
    refused(snapshot(tmp_path / "hub", "x = 1\n", "d" * 40))


def test_a_plain_copy_of_the_snapshot(approved: Path, tmp_path: Path) -> None:
    shutil.copytree(approved, tmp_path / "copy")
    refused(tmp_path / "copy")


def test_a_blob_that_was_overwritten(approved: Path) -> None:
    (approved / "pipeline.py").resolve().write_text("x = 2\n")
    refused(approved)


def test_a_link_of_the_snapshot_that_was_turned_elsewhere(approved: Path, tmp_path: Path) -> None:
    twin = tmp_path / "pipeline.py"
    twin.write_text("x = 1\n")  # the very same content, but no file of the repository
    (approved / "pipeline.py").unlink()
    (approved / "pipeline.py").symlink_to(twin)
    refused(approved)


def test_a_folder_that_was_replaced_by_a_link(state: Path, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pipeline.py").write_text(name)
    TrustStore().add(make_grant(read_tree(str(tmp_path / "good")), imports=[], risks=[]))
    (tmp_path / "good").rename(tmp_path / "moved")
    (tmp_path / "good").symlink_to(tmp_path / "bad")
    refused(tmp_path / "good")


@pytest.mark.parametrize("extra", ["evil.py", "vae/evil.py", "none.py", "tokenizer_config.json", "evil.cpython-311.so"])
def test_one_file_more(approved: Path, extra: str) -> None:
    (approved / extra).parent.mkdir(exist_ok=True)
    (approved / extra).write_text("{}")
    refused(approved)


def test_an_approval_gives_safe_mode_nothing(approved: Path) -> None:
    with Supervisor() as supervisor, pytest.raises(errors.RemoteCodeRefused):
        supervisor.generate(model=str(approved), prompt="x", output=None)


@pytest.mark.parametrize(
    "text", ["[trust]\n", "[policy]\ntrusted_sources = ['org/name']\n", "[policy]\ntrust = true\n"]
)
def test_a_working_folder_cannot_bring_approvals_along(state: Path, tmp_path: Path, text: str) -> None:
    folder = snapshot(tmp_path / "hub", "x = 1\n")
    TrustStore(folder.parent).add(make_grant(read_tree(str(folder)), imports=[], risks=[]))
    (folder.parent / "wan-compat.toml").write_text(text)
    if "policy" in text:
        with pytest.raises(errors.InvalidRequest):
            load_settings(folder.parent, {})
    refused(folder)


def test_a_store_whose_hash_was_edited_is_no_store(approved: Path, state: Path) -> None:
    document = json.loads((state / "trust.json").read_text())
    document["grants"][0]["files"][1]["sha256"] = "0" * 64
    (state / "trust.json").write_text(json.dumps(document))
    with pytest.raises(errors.StateCorrupt):
        require_trust(str(approved), Mode.TRUST)


def test_a_store_that_was_edited_with_care_is_shown_by_the_log(approved: Path, state: Path) -> None:
    """Whoever writes as the user can do this; that it cannot go unseen is all that is claimed."""
    (approved / "pipeline.py").resolve().write_text("x = 2\n")
    document = json.loads((state / "trust.json").read_text())
    tree = read_tree(str(approved))
    document["grants"][0]["files"] = [file.model_dump() for file in tree.files]
    document["grants"][0]["tree_hash"] = tree_hash(tree.files)
    (state / "trust.json").write_text(json.dumps(document))
    health = examine_state()
    assert not health.sound and health.unrecorded == (tree.hash,)
    assert any("never recorded" in line for line in health.describe())
