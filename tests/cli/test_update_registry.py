"""`wan-compat update-registry`: shows every difference, writes only when asked, takes only what is signed."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.cli.conftest import Ended, RunCli, command

KEY = Ed25519PrivateKey.generate()
A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"


class Home:
    """A user's folders, and the verb run in them."""

    def __init__(self, tmp_path: Path, cli: RunCli) -> None:
        self._cli = cli
        self.state, self.config = tmp_path / "state", tmp_path / "config" / "wan-compat" / "config.toml"
        self.overlay = self.state / "wan-compat" / "compatibility_registry.json"
        self.config.parent.mkdir(parents=True)
        self.variables = {"XDG_STATE_HOME": str(self.state), "XDG_CONFIG_HOME": str(tmp_path / "config")}
        self.published = tmp_path / "published.json"

    def run(self, *arguments: str | Path) -> Ended:
        return self._cli("update-registry", *arguments, **self.variables)

    def trust(self) -> None:
        public = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
        self.config.write_text(f'registry_public_key = "{public}"\n')

    def publish(self, document: dict[str, Any]) -> Path:
        content = json.dumps({"schema_version": 1, **document}).encode()
        self.published.write_bytes(content)
        Path(f"{self.published}.sig").write_bytes(KEY.sign(content))
        return self.published


@pytest.fixture
def home(tmp_path: Path, cli: RunCli) -> Home:
    return Home(tmp_path, cli)


def test_auto_without_network_reads_what_is_here(home: Home) -> None:
    ended = home.run("--auto", "--json")
    assert ended.code == 0, ended
    document = ended.document
    assert document["schema_version"] == 1
    assert {source["name"]: source["status"] for source in document["sources"]} == {
        "signed": "absent",
        "installed": "used",
        "cache": "absent",
    }
    assert document["registry_path"] == str(home.overlay)


def test_nothing_to_update_from_is_a_usage_error(home: Home) -> None:
    ended = home.run()
    assert ended.code == 2 and "--auto" in ended.err
    assert home.run("--json").document["error"]["code"] == "invalid_request"


def test_a_signed_file_is_shown_then_taken(home: Home) -> None:
    home.trust()
    file = home.publish({"serial": 3, "models": {A14B: {"defaults": {"fps": 24}}, "new/model": {"notes": ["<b>"]}}})
    shown = home.run("--from", file, "--dry-run")
    assert shown.code == 0, shown
    assert (
        f"~ model {A14B} defaults" in shown.out and "+ model new/model" in shown.out and "would be written" in shown.out
    )
    assert not home.overlay.exists()
    taken = home.run("--from", file, "--json")
    assert taken.code == 0 and taken.document["written"]
    assert {(change["kind"], change["name"]) for change in taken.document["changes"]} == {
        ("changed", A14B),
        ("added", "new/model"),
    }
    assert json.loads(home.overlay.read_text())["models"][A14B] == {"defaults": {"fps": 24.0}}
    assert "up to date" in home.run("--from", file).out
    older = home.run("--from", home.publish({"serial": 2}), "--json")
    assert older.code == 5 and "serial 2" in older.document["error"]["message"]


def test_what_would_lower_a_floor_is_not_taken_and_told(home: Home) -> None:
    home.trust()
    file = home.publish(
        {
            "models": {
                A14B: {"min_diffusers_version": "0.1", "required_dependencies": ["torch>=1", "evil>=1"]},
                "Wan-AI/Wan2.2-S2V-14B": {"pipeline_class": "EvilPipeline"},
            }
        }
    )
    ended = home.run("--from", file, "--json")
    assert ended.code == 0 and ended.document["changes"] == [] and not home.overlay.exists()
    assert {(item["kind"], item["field"]) for item in ended.document["adjustments"]} == {
        ("raised", "min_diffusers_version"),
        ("raised", "required_dependencies"),
        ("refused", "required_dependencies"),
        ("refused", "pipeline_class"),
    }
    assert "Not taken" in home.run("--from", file).err


@pytest.mark.parametrize("how", ["no key", "no signature", "bad signature", "malformed", "absent"])
def test_what_is_not_rightly_signed_is_refused_and_nothing_is_written(home: Home, how: str) -> None:
    if how != "no key":
        home.trust()
    file = home.publish({"models": {"evil/model": {}}, **({"surprise": 1} if how == "malformed" else {})})
    signature = Path(f"{file}.sig")
    if how == "no signature":
        signature.unlink()
    elif how == "bad signature":
        signature.write_bytes(bytes(64))
    elif how == "absent":
        file.unlink()
    ended = home.run("--from", file, "--auto", "--json")
    assert ended.code == (2 if how in ("malformed", "absent") else 5), ended
    assert ended.document["error"]["fixes"] or how in ("malformed", "absent")
    assert not home.overlay.exists()


def test_an_address_that_cannot_be_reached_does_no_harm(home: Home) -> None:
    home.trust()
    home.config.write_text(home.config.read_text() + 'registry_url = "https://localhost:1/registry.json"\n')
    ended = home.run("--auto", "--json")
    assert ended.code == 0, ended
    signed = next(source for source in ended.document["sources"] if source["name"] == "signed")
    assert signed["status"] == "failed" and "cannot be fetched" in signed["detail"]


def test_a_working_folder_cannot_bring_an_address_or_a_key(home: Home, cwd: Path) -> None:
    (cwd / "wan-compat.toml").write_text('registry_public_key = "AAAA"\n')
    ended = home.run("--auto", "--json")
    assert ended.code == 5 and "registry_public_key" in ended.document["error"]["message"]


def test_a_damaged_overlay_stops_the_update_with_its_remedy(home: Home) -> None:
    home.overlay.parent.mkdir(parents=True, mode=0o700)
    home.overlay.write_text("{")
    home.trust()
    ended = home.run("--from", home.publish({"models": {"a/b": {}}}), "--json")
    assert ended.code == 3 and ended.document["error"]["code"] == "state_corrupt"
    assert "mv " in ended.document["error"]["fixes"][0]
    assert home.overlay.read_text() == "{"


def test_on_a_terminal_the_diff_is_a_table_without_controls(home: Home, environment: dict[str, str], cwd: Path) -> None:
    home.trust()
    file = home.publish({"models": {A14B: {"notes": ["\x1b[31mred [bold]x[/bold]"]}}})
    leader, follower = pty.openpty()
    variables = {**environment, **home.variables, "TERM": "xterm"}
    arguments = command("update-registry", "--from", file, "--dry-run")
    with subprocess.Popen(
        arguments, stdin=follower, stdout=follower, stderr=follower, cwd=cwd, env=variables
    ) as process:
        os.close(follower)
        seen, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline and select.select([leader], [], [], 5)[0]:
            try:
                seen += os.read(leader, 65536)
            except OSError:  # EIO: the other side is closed
                break
        assert process.wait(30) == 0
    os.close(leader)
    text = seen.decode()
    assert "what" in text and A14B in text and "\x1b[31m" not in text, text


def test_no_model_code_is_imported(home: Home, environment: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from wan_compat.supervisor.cli.main import main\n"
        "assert main(['update-registry', '--auto', '--dry-run', '--json']) == 0\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'torch', 'diffusers', 'transformers', 'cryptography'}\n"
        "assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, env={**environment, **home.variables}
    )
