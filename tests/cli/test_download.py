"""`--download` and `--verify` as a person uses them, with a hub on this machine."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import RunCli, command
from tests.programs.fake_hub import COMMIT, FakeHub, files_of, send_slowly
from tests.supervisor.test_downloader import DEMO, ID, WEIGHTS
from tests.supervisor.test_integrity import KEY, SIGNED


@pytest.fixture
def hub(tmp_path: Path, environment: dict[str, str]) -> Iterator[FakeHub]:
    with FakeHub({**files_of(DEMO), "pipeline.py": b"raise SystemExit\n"}) as running:
        environment |= {
            "HF_ENDPOINT": running.endpoint,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HOME": str(tmp_path / "home"),
        }
        yield running


def test_a_model_goes_from_the_hub_to_a_video_in_one_command(
    hub: FakeHub, tmp_path: Path, cwd: Path, cli: RunCli
) -> None:
    size = ("--width", "32", "--height", "32", "--num-frames", "5", "--num-inference-steps", "1")
    ended = cli("generate", ID, "--prompt", "a red ball", *size, "--output", "first.mp4")
    assert ended.code == 4
    assert "--download" in ended.err
    ended = cli("generate", ID, "--prompt", "a red ball", *size, "--output", "v.mp4", "--download", "--json")
    assert ended.code == 0, ended
    metadata = ended.document["metadata"]
    assert (metadata["repository"], metadata["revision"]) == (ID, COMMIT)
    assert f"Fetched {ID} at commit {COMMIT}" in ended.err
    assert (cwd / "v.mp4").stat().st_size > 0
    assert "pipeline.py" not in hub.fetched


def test_check_verifies_what_was_fetched_and_sees_a_byte_that_changed(
    hub: FakeHub, tmp_path: Path, cwd: Path, cli: RunCli
) -> None:
    ended = cli("check", ID, "--download", "--verify", "--json")
    assert ended.code == 0, ended
    integrity = ended.document["integrity"]
    assert integrity["verified"][WEIGHTS] == "hub"
    assert integrity["unverified"] == []
    weights = next(tmp_path.glob(f"hub/*/snapshots/{COMMIT}/{WEIGHTS}"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.resolve().write_bytes(raw)
    ended = cli("check", ID, "--verify", "--json")
    assert ended.code == 4
    assert "hash_mismatch" in {item["code"] for item in ended.document["findings"]}
    ended = cli("check", ID, "--verify")
    assert ended.code == 4
    assert "Integrity: " in ended.out


def test_scan_tells_whose_signature_a_model_has(hub: FakeHub, tmp_path: Path, cwd: Path, cli: RunCli) -> None:
    shutil.copytree(SIGNED, cwd / "model")
    ended = cli("scan", "model", "--verify", "--public-key", str(KEY), "--json")
    assert ended.document["integrity"]["verified"]["config.json"] == "signature"
    (cwd / "model" / "config.json").write_text("{}")
    ended = cli(
        "scan",
        "model",
        "--verify",
        "--public-key",
        str(KEY),
        "--json",
        "--sarif",
        str(tmp_path / "found.sarif"),
    )
    assert ended.code == 4
    assert "hash_mismatch" in (tmp_path / "found.sarif").read_text()
    ended = cli("scan", "model", "--public-key", str(KEY))
    assert ended.code == 2
    assert "--verify" in ended.err


def test_require_manifest_refuses_a_model_of_which_nobody_gave_hashes(
    hub: FakeHub, environment: dict[str, str], cli: RunCli
) -> None:
    environment["WAN_COMPAT_REQUIRE_MANIFEST"] = "true"
    ended = cli("generate", str(DEMO), "--prompt", "a", "--output", "v.mp4")
    assert ended.code == 5
    assert "nobody gave a hash" in ended.err


def test_ctrl_c_ends_a_download_and_what_fetched_for_it(
    hub: FakeHub, tmp_path: Path, environment: dict[str, str]
) -> None:
    hub.faults[WEIGHTS] = send_slowly
    process = subprocess.Popen(
        command("check", ID, "--download"), env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while WEIGHTS not in hub.fetched:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert list(tmp_path.glob("hub/*/blobs/*.incomplete"))
    assert not list(tmp_path.glob("hub/*/snapshots"))


def test_a_project_cannot_switch_downloads_on(
    hub: FakeHub, cwd: Path, environment: dict[str, str], cli: RunCli
) -> None:
    (cwd / "wan-compat.toml").write_text("[policy]\nallow_downloads = false\n")
    ended = cli("check", ID, "--download")
    assert ended.code == 5
    assert "switched off" in ended.err
    (cwd / "wan-compat.toml").write_text("[policy]\nallow_downloads = true\n")
    environment["WAN_COMPAT_ALLOW_DOWNLOADS"] = "false"
    ended = cli("check", ID, "--download")
    assert ended.code == 5
    assert "looser" in ended.err
    assert not hub.requests


def test_code_of_a_model_fetched_in_safe_mode_comes_when_trust_add_asks_for_it(
    hub: FakeHub, tmp_path: Path, cli: RunCli
) -> None:
    assert cli("check", ID, "--download").code == 0
    assert not list(tmp_path.glob("hub/**/*.py"))
    assert "pipeline.py" not in cli("trust", "add", ID, "--yes", "--json").out
    ended = cli("trust", "add", ID, "--download", "--yes", "--json")
    assert ended.code == 0, ended
    assert ended.document["code"] == ["pipeline.py"]
    assert ended.document["revision"] == COMMIT
