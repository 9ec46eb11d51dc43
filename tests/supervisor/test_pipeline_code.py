from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs.fake_hub import COMMIT, FakeHub
from tests.supervisor.test_downloader import ID, index_only
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import ModelNotFound, RefusedByPolicy
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.dependency_manager import DependencyManager
from wan_compat.supervisor.downloader import download_model
from wan_compat.supervisor.inspection.locate import locate
from wan_compat.supervisor.pipeline_code import code_cache, fetch_missing_code
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore, make_grant

# Importing it would leave a trace; nothing here may.
CODE = b"open('ran', 'w').close()\nimport os\nos.system('true')\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with FakeHub(index_only() | {"pipeline.py": CODE, "big.bin": b"x"}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def test_sources_of_a_model_in_the_cache_join_the_snapshot_of_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    model = download_model(ID, Policy())
    got = fetch_missing_code(ID, Policy())
    assert got is not None
    assert got.downloaded.path == model.path
    assert (Path(model.path) / "pipeline.py").read_bytes() == CODE
    assert got.scan.risk_level == "high"
    assert "high risk" in got.verdict
    assert not (tmp_path / "ran").exists()


def test_sources_without_their_model_do_not_pass_for_a_model(hub: FakeHub) -> None:
    got = fetch_missing_code(ID, Policy())
    assert got is not None
    assert got.downloaded.path.startswith(code_cache())
    assert sorted(hub.fetched) == ["pipeline.py"]
    with pytest.raises(ModelNotFound):
        locate(ID)


def test_a_folder_of_the_users_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert fetch_missing_code(str(tmp_path / "model"), Policy()) is None
    assert not hub.requests


def test_switched_off_or_in_safe_mode_no_code_is_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedByPolicy):
        fetch_missing_code(ID, Policy(mode=Mode.SAFE))
    with pytest.raises(RefusedByPolicy):
        fetch_missing_code(ID, Policy(allow_downloads=False))
    manager = DependencyManager()
    assert "safe mode" in str(manager.fetch_pipeline_code(ID).error)
    monkeypatch.setenv("WAN_COMPAT_ALLOW_DOWNLOADS", "false")
    assert "switched off" in str(manager.fetch_pipeline_code(ID, trust_remote_code=True).error)
    assert not hub.requests


def test_fetched_code_is_handed_out_once_a_person_approved_it(hub: FakeHub) -> None:
    manager = DependencyManager()
    first = manager.fetch_pipeline_code(ID, trust_remote_code=True)
    assert not first.success
    assert first.code_path is not None and COMMIT in first.code_path
    assert "high risk" in str(first.error)
    TrustStore().add(make_grant(read_tree(first.code_path), imports=(), risks=()))
    second = manager.fetch_pipeline_code(ID, trust_remote_code=True)
    assert second.success
    assert second.sha256 is not None
    assert second.source_url == first.source_url
