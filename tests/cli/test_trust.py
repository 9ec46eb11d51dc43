"""`trust add|list|remove`: what is shown, who is asked, what is written, and what a change in between does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ended, RunCli
from wan_compat.supervisor.audit_log import AuditLog
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore

CODE = """import os, torch
from diffusers import DiffusionPipeline
from . import helper
class Evil(DiffusionPipeline):
    def __init__(self):
        os.system("id")
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "wan-compat"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": ["pipeline", "Evil"]}')
    (folder / "pipeline.py").write_text(CODE)
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "link").symlink_to("/etc/passwd")
    return folder


def test_add_shows_files_hashes_imports_risks_and_the_meaning_then_asks(
    terminal: Callable[..., Ended], model: Path, state: Path
) -> None:
    ended = terminal("trust", "add", model)
    assert ended.code == 0, ended
    tree = read_tree(str(model))
    assert tree.hash in ended.out
    for file in tree.files:
        assert re.search(rf"{file.size} .*{(file.sha256 or '')[:16]}.*{re.escape(file.path)}", ended.out), file.path
    assert "Imports: ., diffusers, os, torch" in ended.out
    assert "pipeline.py:6" in ended.out and "os.system" in ended.out
    assert "link (a link)" in ended.out
    assert "code of the repository" in ended.out and "sandbox (tier B at least)" in ended.out
    (grant,) = TrustStore(state).grants()
    assert grant.tree_hash == tree.hash and "os" in grant.imports and any("os.system" in risk for risk in grant.risks)
    assert AuditLog(state).entries()[-1].event == "trust_granted"


def test_code_is_found_by_its_content_too(cli: RunCli, model: Path) -> None:
    (model / "x.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'id'\ntR.")
    document = cli("trust", "add", model, "--dry-run", "--json").document
    assert document["code"] == ["pipeline.py", "x.safetensors"]
    assert any(risk.startswith("error: x.safetensors: ") and "os.system" in risk for risk in document["risks"])


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"yess\n", b"\x04"])
def test_anything_but_yes_approves_nothing_and_is_recorded(
    answer: bytes, terminal: Callable[..., Ended], model: Path, state: Path
) -> None:
    ended = terminal("trust", "add", model, act=lambda: answer)
    assert ended.code == 5, ended
    assert TrustStore(state).grants() == ()
    assert [entry.event for entry in AuditLog(state).entries()] == ["trust_refused"]


def test_without_a_terminal_nobody_is_taken_to_have_agreed(cli: RunCli, model: Path, state: Path) -> None:
    ended = cli("trust", "add", model, stdin=b"y\nyes\n" * 100)
    assert ended.code == 5 and "--yes" in ended.err, ended
    ended = cli("trust", "add", model, "--json")
    assert ended.code == 5 and ended.document["error"]["code"] == "not_confirmed"
    assert TrustStore(state).grants() == ()


def test_a_dry_run_shows_all_and_writes_nothing(cli: RunCli, model: Path, state: Path) -> None:
    ended = cli("trust", "add", model, "--dry-run", "--json")
    assert ended.code == 0 and ended.document["approved"] is False
    assert ended.document["tree_hash"] == read_tree(str(model)).hash
    assert not state.exists()
    assert "pipeline.py" in cli("trust", "add", model, "--dry-run", "--yes").out and not state.exists()


def test_a_changed_byte_asks_again_and_shows_the_difference(
    cli: RunCli, terminal: Callable[..., Ended], model: Path, state: Path
) -> None:
    assert cli("trust", "add", model, "--yes").code == 0
    ended = cli("trust", "add", model)
    assert ended.code == 0 and "Approved already" in ended.out
    (model / "pipeline.py").write_text(CODE.replace("id", "ls"))
    (model / "new.py").write_text("")
    (model / "vae" / "config.json").unlink()
    assert cli("trust", "add", model).code == 5
    ended = terminal("trust", "add", model)
    assert ended.code == 0
    for line in ("added    new.py", "removed  vae/config.json", "changed  pipeline.py: "):
        assert line in ended.out
    assert [grant.tree_hash for grant in TrustStore(state).grants()] == [read_tree(str(model)).hash]


def test_what_changes_while_the_question_stands_is_not_approved(
    terminal: Callable[..., Ended], model: Path, state: Path
) -> None:
    def swap() -> bytes:
        (model / "pipeline.py").write_text(CODE + "# one line more\n")
        return b"y\n"

    ended = terminal("trust", "add", model, act=swap)
    assert ended.code == 5 and "changed while you were looking" in ended.out
    assert TrustStore(state).grants() == ()
    assert AuditLog(state).entries()[-1].fields["why"] == "changed meanwhile"


def test_text_of_the_repository_reaches_the_terminal_cleaned(cli: RunCli, model: Path) -> None:
    (model / "a\x1b[2Jb\n\u202e.py").write_text("import os\x00")
    (model / "evil.py").write_text("# \u202e\nexec('\x1b[31m')\n")
    ended = cli("trust", "add", model, "--dry-run")
    assert ended.code == 0
    assert "\x1b" not in ended.out and "\u202e" not in ended.out and "\\x1b[2Jb" in ended.out


def test_list_shows_approvals_and_verifies_the_chain(cli: RunCli, model: Path, state: Path) -> None:
    ended = cli("trust", "list")
    assert (ended.code, ended.out) == (0, "Nothing was approved.\nAudit log: whole, 0 entries; 0 approvals\n")
    cli("trust", "add", model, "--yes")
    ended = cli("trust", "list")
    assert ended.code == 0 and str(model) in ended.out and "Audit log: whole, 1 entries; 1 approvals" in ended.out
    assert "os.system" in cli("trust", "list", "-v").out

    log = state / "audit.jsonl"
    log.write_text(log.read_text().replace('"risks":', '"Risks":'))
    ended = cli("trust", "list")
    assert ended.code == 1 and "DAMAGED: line 1" in ended.out and "mv " in ended.out
    assert cli("trust", "list", "--json").document["audit"]["chain"]["intact"] is False


def test_an_approval_that_the_log_does_not_know_is_shown(cli: RunCli, model: Path, state: Path) -> None:
    cli("trust", "add", model, "--yes")
    for name in ("audit.jsonl", "audit.head"):
        (state / name).unlink()
    ended = cli("trust", "list")
    assert ended.code == 1 and "never recorded" in ended.out


@pytest.mark.parametrize("how", ["path", "hash"])
def test_remove_withdraws_and_trust_mode_refuses_again(how: str, cli: RunCli, model: Path, state: Path) -> None:
    cli("trust", "add", model, "--yes")
    name = str(model) if how == "path" else read_tree(str(model)).hash[:12]
    ended = cli("trust", "remove", name, "--dry-run")
    assert ended.code == 0 and len(TrustStore(state).grants()) == 1
    ended = cli("trust", "remove", name, "--json")
    assert ended.code == 0 and len(ended.document["removed"]) == 1
    assert TrustStore(state).grants() == ()
    assert [entry.event for entry in AuditLog(state).entries()] == ["trust_granted", "trust_removed"]
    assert cli("trust", "remove", name).code == 2


def test_a_damaged_store_ends_every_verb_with_a_remedy(cli: RunCli, model: Path, state: Path) -> None:
    state.mkdir(parents=True, mode=0o700)
    (state / "trust.json").write_text("{}")
    (state / "trust.json").chmod(0o600)
    for arguments in (["add", str(model), "--yes"], ["list"], ["remove", str(model)]):
        ended = cli("trust", *arguments)
        assert ended.code == 3 and "mv " in ended.err, ended
    assert (state / "trust.json").read_text() == "{}"


def test_trust_mode_without_an_approval_refuses_and_points_to_the_review(cli: RunCli, model: Path, state: Path) -> None:
    ended = cli("generate", model, "--prompt", "my secret", "--mode", "trust", "--json")
    assert ended.code == 5 and ended.document["error"]["code"] == "trust_refused"
    assert any("wan-compat trust add" in fix for fix in ended.document["error"]["fixes"])
    cli("trust", "add", model, "--yes")
    (model / "pipeline.py").write_text("")
    ended = cli("generate", model, "--prompt", "my secret", "--mode", "trust", "--json")
    assert ended.document["error"]["details"]["changed"] == ["pipeline.py"]
    assert b"secret" not in (state / "audit.jsonl").read_bytes()


def test_first_use_is_asked_once_and_says_what_the_mode_means(
    terminal: Callable[..., Ended], model: Path, state: Path
) -> None:
    (model / "link").unlink()
    arguments = ("generate", model, "--prompt", "x")
    ended = terminal(*arguments, act=lambda: b"n\n")
    assert ended.code == 5 and "has not been used here before" in ended.out and "Safe mode: no code" in ended.out
    assert not (state / "models.json").exists()
    # The model has code and is refused for it; what counts here is that the question came, and came once.
    ended = terminal(*arguments)
    assert "[y/N]" in ended.out and ended.code == 5
    assert AuditLog(state).entries()[-2].fields["confirmed"] is True
    assert "[y/N]" not in terminal(*arguments).out


def test_yes_and_json_ask_nothing(terminal: Callable[..., Ended], model: Path) -> None:
    for option in ("--yes", "--json"):
        assert "[y/N]" not in terminal("generate", model, "--prompt", "x", option).out


def test_doctor_verifies_chain_and_store(cli: RunCli, model: Path, state: Path) -> None:
    cli("trust", "add", model, "--yes")
    document = cli("doctor", "--json").document
    assert document["audit"]["chain"]["intact"] is True and document["audit"]["store"]["grants"] == 1
    (state / "audit.jsonl").write_bytes(b"")
    (state / "trust.json").chmod(0o666)
    ended = cli("doctor")
    assert "Audit log     DAMAGED" in ended.out and "chmod go-w" in ended.out
