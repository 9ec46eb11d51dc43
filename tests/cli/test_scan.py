"""`wan-compat scan`: exit codes, one JSON document, SARIF, and words in which a hostile repository has no say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import RunCli

EVIL = b"cos\nsystem\n(S'id'\ntR."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def test_a_safe_model_ends_with_0_and_says_so_first(cli: RunCli, repository: Path) -> None:
    ended = cli("scan", repository / "wan_compat/data/demo_model", "--hash")
    assert ended.code == 0 and ended.err == ""
    assert ended.out.startswith("Risk low: nothing was found.\n")
    assert "11 files" in ended.out and "content " in ended.out


def test_json_is_one_document_with_the_fields_of_the_interface(cli: RunCli, folder: Path) -> None:
    (folder / "a.bin").write_bytes(EVIL)
    ended = cli("scan", folder, "--json")
    document = ended.document
    assert ended.code == 5 and ended.err == ""
    assert set(document) == {"schema_version", "is_safe", "risk_level", "findings", "files", "content_hash"}
    assert (document["is_safe"], document["risk_level"]) == (False, "high")
    worst = document["findings"][0]
    assert (worst["path"], worst["rule"], worst["severity"]) == ("a.bin", "pickle-dangerous-global", "error")
    assert {file["path"]: file["format"] for file in document["files"]} == {"a.bin": "pickle", "config.json": "json"}


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("x.dat", b"\x01\x02\x03", 1),
        ("x.json", b"{", 4),
        ("x.py", b"x = 1\n", 5),
        ("x.bin", EVIL, 5),
    ],
)
def test_exit_codes_tell_what_kind_of_thing_was_found(
    cli: RunCli, folder: Path, name: str, content: bytes, code: int
) -> None:
    (folder / name).write_bytes(content)
    ended = cli("scan", folder)
    assert ended.code == code and name in ended.out and "-> " in ended.out


def test_nothing_to_scan_is_an_error_with_its_fix(cli: RunCli, tmp_path: Path) -> None:
    ended = cli("scan", tmp_path / "nothing", "--json")
    assert ended.code == 4 and ended.document["error"]["code"] == "model_not_found"


def test_a_persons_picture_has_file_line_and_fix(cli: RunCli, folder: Path) -> None:
    (folder / "pipeline.py").write_text("import torch\nimport os\nos.system('id')\n")
    out = cli("scan", folder).out
    assert out.startswith("Risk high")
    assert "  pipeline.py\n" in out
    assert "error    line 3: uses os.system  [python-process]" in out
    assert "-> do not approve it" in out
    assert "RestrictedPython" not in out and "RestrictedPython" in cli("scan", folder, "-v").out


def test_sarif_is_written_whole_and_replaces_nothing_unasked(cli: RunCli, folder: Path, cwd: Path) -> None:
    (folder / "a.bin").write_bytes(EVIL)
    assert cli("scan", folder, "--sarif", "found.sarif").code == 5
    document = json.loads((cwd / "found.sarif").read_text())
    assert document["version"] == "2.1.0"
    assert {result["ruleId"] for result in document["runs"][0]["results"]} >= {"pickle-dangerous-global"}
    refused = cli("scan", folder, "--sarif", "found.sarif")
    assert refused.code == 2 and "exists" in refused.err and refused.out == ""
    assert cli("scan", folder, "--sarif", "found.sarif", "--overwrite").code == 5
    assert [path.name for path in cwd.iterdir()] == ["found.sarif"]


def test_names_and_contents_reach_the_terminal_without_controls(cli: RunCli, folder: Path) -> None:
    (folder / "a\x1b[2J\nRisk low: nothing was found.\u202e.bin").write_bytes(EVIL)
    (folder / os.fsdecode(b"\xff\xfe.py")).write_text("x = '''~/.ssh/id_rsa \x1b]0;title\x07'''\nimport os\n")
    for arguments in ((), ("--json",), ("-v",)):
        ended = cli("scan", folder, *arguments)
        assert ended.code == 5
        assert not {"\x1b", "\x07", "\u202e"} & set(ended.out + ended.err)
        assert "\nRisk low" not in ended.out
