"""A flagrant call is never executed, ends its worker, and is told with its name; so is a broken protocol. [T7, T10]"""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.harness import full_layers, names, run_program
from tests.supervisor.conftest import misbehaving, request_for
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import incidents

__all__ = ["misbehaving", "request_for"]  # fixtures

FULL = names(full_layers())


def hold(then: str, **order: Any) -> Any:
    return run_program("sandbox_launch", {"scenario": "hold_call", "layers": FULL, "then": then, **order})


def test_flagrant_call_is_held_and_its_caller_killed() -> None:
    found = hold("kill")
    assert found["listener"] and found["readable"]
    assert found["call"] == ["ptrace", 16, 2, 3, 4]
    assert found["signal"] == signal.SIGKILL
    assert found["said"] == [[""]], "the call came back, or the worker has a descriptor that it should not have"


@pytest.mark.parametrize("call", ["process_vm_readv", "unshare", "keyctl", "pivot_root", "perf_event_open", "ptrace"])
def test_a_held_call_is_not_executed_even_when_nobody_listens_any_more(call: str) -> None:
    """The supervisor died: its descriptor closes, and the kernel answers ENOSYS in its place."""
    found = hold("close", call=call)
    assert found["call"] == [call, 16, 2, 3, 4]
    assert found["said"] == [[""], "E38"]


def test_a_call_that_is_taken_back_has_achieved_nothing() -> None:
    found = hold("interrupt")
    assert not found["readable"]
    assert found["said"] == [[""], "E4"]


def test_without_a_listener_flagrant_calls_kill_by_themselves() -> None:
    found = hold("kill", no_listener=True)
    assert not found["listener"]
    assert found["signal"] == signal.SIGSYS and found["said"] == [[""]]


def test_a_listener_leaves_nothing_behind() -> None:
    found = run_program("sandbox_launch", {"scenario": "count_leaks", "layers": FULL, "times": 20, "notify": True})
    assert found["after"] == found["before"]


def last_incident() -> dict[str, Any]:
    return json.loads(incidents.audit_file().read_text().splitlines()[-1])  # type: ignore[no-any-return]


def test_forbidden_call_ends_the_job_and_is_told_in_every_place(misbehaving: Any, request_for: Any) -> None:
    supervisor = misbehaving("denoise:forbidden")
    job = supervisor.submit(request_for())
    seen = list(job.events())
    with pytest.raises(errors.ForbiddenCall, match="ptrace") as caught:
        job.result()
    assert caught.value.exit_code == 7 and caught.value.fixes
    told = caught.value.details["incident"]
    assert (told["kind"], told["what"], told["state"]) == ("forbidden_call", "ptrace", "generating")
    assert all(isinstance(value, int) for value in told["arguments"]) and len(told["arguments"]) == 6
    assert [type(event) for event in seen][-2:] == [ev.Incident, ev.Ended]
    assert seen[-2].incident.what == "ptrace"
    assert last_incident() == json.loads(json.dumps(told))
    assert json.dumps(caught.value.to_json())


@pytest.mark.parametrize(
    ("behaviour", "kind", "what", "first_bytes"),
    [
        ("load:garbage", "protocol_violation", "msgpack", "c1" * 64),
        ("denoise:bad-sequence", "protocol_violation", "sequence number", ""),
        ("early-ready", "protocol_violation", "Ready", ""),
        ("frame:skip-frame", "corrupt_frame", "frame 2 expected, 5 published", "0100000005000000"),
        ("frame:finish-early", "corrupt_frame", "2 of 9", ""),
    ],
)
def test_violation_is_an_incident_with_bounded_evidence(
    behaviour: str,
    kind: str,
    what: str,
    first_bytes: str,
    misbehaving: Any,
    request_for: Any,
) -> None:
    with pytest.raises(errors.ProtocolViolation) as caught:
        misbehaving(behaviour).generate(request_for())
    told = caught.value.details["incident"]
    assert told["kind"] == kind and what in told["what"] and told["first_bytes"] == first_bytes
    assert last_incident() == json.loads(json.dumps(told))


def test_ordinary_failure_is_no_incident(misbehaving: Any, request_for: Any) -> None:
    job = misbehaving("denoise:exit").submit(request_for())
    assert not any(isinstance(event, ev.Incident) for event in job.events())


def some_incident(text: str = "x") -> incidents.Incident:
    error = errors.ProtocolViolation(text, details={"first_bytes": "00" * 500})
    return incidents.violation("w1", "loading", error)


def test_audit_file_is_private_and_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "state" / "incidents.jsonl"
    for index in range(3):
        assert incidents.record(some_incident(f"number {index}"), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["what"] for line in lines] == ["number 0", "number 1", "number 2"]
    assert all(len(line["first_bytes"]) <= 2 * incidents.MAX_EVIDENCE_BYTES for line in lines)


def test_audit_file_holds_no_control_characters_and_no_forged_lines(tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    incidents.record(some_incident('\x1b[2J\u202e\n{"kind": "forged"}' + "y" * 9000), path)
    content = path.read_bytes()
    assert content.count(b"\n") == 1 and content.isascii()
    assert b"\x1b" not in content and len(content) < 2000


def test_audit_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incidents, "MAX_FILE_BYTES", 2000)
    path = tmp_path / "incidents.jsonl"
    for _ in range(50):
        assert incidents.record(some_incident("z" * 300), path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["incidents.jsonl", "incidents.old.jsonl"]
    assert all(item.stat().st_size <= 2000 for item in tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "read-only parent"])
def test_audit_file_that_cannot_be_written_stops_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "incidents.jsonl"
    target = tmp_path / "target"
    if kind == "link":
        target.write_text("")
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        target.write_text("")
        path = target / "incidents.jsonl"
    assert not incidents.record(some_incident(), path)
    assert not target.exists() or target.read_text() == ""
