"""`wan-compat config show`, and that settings bind the verbs."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import RunCli
from wan_compat.policies.policy import SETTINGS
from wan_compat.supervisor.demo import demo_model

MODEL = demo_model()


def test_every_setting_is_shown_with_its_origin(cli: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat.toml").write_text('[policy]\nmin_tier = "A"\n')
    document = cli("config", "show", "--json", WAN_COMPAT_THREADS="99").document
    assert set(document["settings"]) == set(SETTINGS)
    assert document["settings"]["threads"] == {"value": 99, "origin": "environment"}
    assert document["settings"]["min_tier"]["value"] == "A"
    assert document["settings"]["min_tier"]["origin"].endswith("wan-compat.toml")
    assert document["settings"]["mode"]["origin"] == "built in"
    assert document["registry"] == {"url": None, "public_key": None}
    shown = cli("config", "show")
    assert shown.code == 0 and "min_tier" in shown.out and "wan-compat.toml" in shown.out
    assert "up to trust" in shown.out and " 64MiB " in shown.out


def test_settings_that_a_download_brought_cannot_loosen_the_sandbox(cli: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat.toml").write_text('[policy]\nmin_tier = "E"\nallow_unsandboxed = true\n')
    for arguments in (["config", "show"], ["generate", MODEL, "--prompt", "x"]):
        ended = cli(*arguments, "--json")
        assert ended.code == 5 and ended.document["error"]["code"] == "refused_by_policy"


def test_malformed_settings_stop_a_generation_before_it_starts(cli: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat.toml").write_text("[policy]\nthreads = -1\n")
    ended = cli("generate", MODEL, "--prompt", "x")
    assert ended.code == 2 and "wan-compat.toml" in ended.err and "threads" in ended.err


def test_memory_limit_of_the_settings_binds_a_job_that_asks_for_more(cli: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat.toml").write_text('[policy]\nmemory_limit = "1GiB"\n')
    small = ["--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "1"]
    ended = cli("generate", MODEL, "--prompt", "x", *small, "--memory-limit", "4GiB", "--json")
    assert ended.code == 0, ended
    assert ended.document["sandbox"]["memory_limit_bytes"] == 1 << 30
