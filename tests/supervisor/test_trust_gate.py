"""Trust mode runs what was approved, to the byte, and refuses everything else; who decides is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wan_compat.policies.trust import TrustOutcome
from wan_compat.protocol import errors
from wan_compat.protocol.values import Mode
from wan_compat.supervisor import first_use
from wan_compat.supervisor.audit_log import AuditEvent, AuditLog
from wan_compat.supervisor.client import Supervisor
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_gate import require_trust
from wan_compat.supervisor.trust_store import TrustStore, make_grant


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "wan-compat"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    (folder / "pipeline.py").write_text("import torch\n")
    return folder


def approve(model: Path) -> None:
    TrustStore().add(make_grant(read_tree(str(model)), imports=["torch"], risks=[]))


def events(state: Path) -> list[str]:
    return [entry.event for entry in AuditLog(state).entries()]


def test_what_was_approved_passes_with_the_files_to_admit(state: Path, model: Path) -> None:
    approve(model)
    decision = require_trust(str(model), Mode.TRUST)
    assert decision.runs_code and decision.grant is not None
    assert [fact.path for fact in decision.tree.facts] == ["model_index.json", "pipeline.py"]
    assert decision.tree.facts[1].inode == (model / "pipeline.py").stat().st_ino


def test_safe_mode_needs_nothing_and_reads_nothing(state: Path) -> None:
    assert require_trust("/nowhere", Mode.SAFE).outcome is TrustOutcome.NOT_NEEDED
    assert not state.exists()


def test_nothing_approved_is_refused_names_the_review_and_is_recorded(state: Path, model: Path) -> None:
    with pytest.raises(errors.TrustRefused) as caught:
        require_trust(str(model), Mode.TRUST)
    assert caught.value.exit_code == 5
    assert any("wan-compat trust add" in fix for fix in caught.value.fixes)
    assert not any("--mode trust" in fix or "remote" in fix for fix in caught.value.fixes)
    (entry,) = AuditLog(state).entries()
    assert (entry.event, entry.fields["model"]) == (AuditEvent.TRUST_REFUSED, str(model))


def test_a_changed_byte_is_refused_and_named(state: Path, model: Path) -> None:
    approve(model)
    (model / "pipeline.py").write_text("import torcH\n")
    with pytest.raises(errors.TrustRefused, match=r"changed: pipeline\.py") as caught:
        require_trust(str(model), Mode.TRUST)
    assert caught.value.details["changed"] == ["pipeline.py"]
    assert AuditLog(state).entries()[-1].fields["changed"] == ["pipeline.py"]


def test_a_copy_elsewhere_inherits_nothing(state: Path, model: Path) -> None:
    import shutil

    approve(model)
    shutil.copytree(model, model.parent / "copy")
    with pytest.raises(errors.TrustRefused):
        require_trust(str(model.parent / "copy"), Mode.TRUST)


@pytest.mark.parametrize("damage", ["corrupt", "shared"])
def test_a_store_that_cannot_be_believed_is_no_yes(damage: str, state: Path, model: Path) -> None:
    approve(model)
    if damage == "corrupt":
        (state / "trust.json").write_text("{")
    else:
        (state / "trust.json").chmod(0o666)
    with pytest.raises(errors.StateCorrupt if damage == "corrupt" else errors.StateUnsafe):
        require_trust(str(model), Mode.TRUST)


def test_a_job_in_trust_mode_meets_the_gate(state: Path, model: Path) -> None:
    with Supervisor(mode="trust") as supervisor, pytest.raises(errors.TrustRefused):
        supervisor.generate(model=str(model), prompt="a secret prompt", mode="trust")
    assert events(state) == ["trust_refused"]
    assert b"secret" not in (state / "audit.jsonl").read_bytes()


# -- what jobs write down ------------------------------------------------------------------------------------------


def test_first_use_is_recorded_once(state: Path, misbehaving: Any, request_for: Any) -> None:
    supervisor = misbehaving("well")
    for _ in range(2):
        assert supervisor.generate(request_for(output=None, prompt="a secret prompt")).warnings == []
    (entry,) = AuditLog(state).entries()
    assert entry.event == "first_use" and entry.fields["confirmed"] is False and entry.fields["mode"] == "safe"
    first_use._remembered.clear()  # as another process
    assert not first_use.is_first_use(request_for().model)
    assert not first_use.remember(request_for().model, Mode.SAFE, confirmed=False)
    assert b"secret" not in (state / "audit.jsonl").read_bytes()


@pytest.mark.parametrize("damage", ["corrupt", "shared", "damaged log"])
def test_a_record_that_cannot_be_made_is_told_and_stops_no_safe_job(
    damage: str, state: Path, misbehaving: Any, request_for: Any
) -> None:
    first_use.remember("/usr", Mode.SAFE, confirmed=False)
    if damage == "damaged log":
        (state / "audit.head").unlink()
    else:
        (state / "models.json").write_text("[")
        (state / "models.json").chmod(0o666 if damage == "shared" else 0o600)
    result = misbehaving("well").generate(request_for(output=None))
    assert len(result.warnings) == 1 and "could not be recorded" in result.warnings[0]


def test_the_list_of_used_models_is_bounded(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "MAX_MODELS", 2)
    names = []
    for number in range(3):
        (tmp_path / f"m{number}").mkdir()
        names.append(str(tmp_path / f"m{number}"))
        assert first_use.remember(names[-1], Mode.SAFE, confirmed=True)
    assert [first_use.is_first_use(name) for name in names] == [True, False, False]


def test_incidents_and_refusals_are_recorded_by_code(state: Path, misbehaving: Any, request_for: Any) -> None:
    with pytest.raises(errors.ForbiddenCall):
        misbehaving("denoise:forbidden").generate(request_for())
    with pytest.raises(errors.RefusedByPolicy):
        misbehaving("well").submit(request_for(mode="trust"))
    with pytest.raises(errors.RefusedByPolicy):
        Supervisor(min_tier="E")
    recorded = AuditLog(state).entries()[1:]
    assert [entry.event for entry in recorded] == ["incident", "refused", "refused"]
    assert (recorded[0].fields["kind"], recorded[0].fields["call"]) == ("forbidden_call", "ptrace")
    assert recorded[1].fields["code"] == "refused_by_policy" and recorded[1].fields["model"] == request_for().model
    assert AuditLog(state).verify().intact


def test_an_ordinary_failure_is_not_recorded(state: Path, misbehaving: Any, request_for: Any) -> None:
    with pytest.raises(errors.WorkerDied):
        misbehaving("denoise:exit").generate(request_for())
    assert events(state) == ["first_use"]
