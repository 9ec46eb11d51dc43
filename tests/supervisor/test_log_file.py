"""The log: private, whole lines, rotated within bounds, redacted, and no job ever waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from wan_compat.protocol.errors import InvalidRequest, JobCancelled, MemoryExceeded, OutputNotWritable
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import log_file as log_file_module
from wan_compat.supervisor.client import Supervisor
from wan_compat.supervisor.job import Job, Ticket
from wan_compat.supervisor.job_log import JobLog
from wan_compat.supervisor.log_file import LogFile
from wan_compat.supervisor.operations import observe


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def as_it_is(document: Any) -> Any:
    return document


def make_job(**fields: Any) -> Job[Any]:
    request = GenerationRequest(model="org/model", prompt="a red fox", output="/x/0001-a-red-fox-7.mp4", **fields)
    return Job(request, "j7", Ticket(label="first"), lambda _job: None)


def test_the_file_is_private_and_lines_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.jsonl"
    for start in (0, 50):
        log = LogFile(path, as_it_is)
        for number in range(start, start + 50):
            log.write({"n": number})
        log.close()
    assert [entry["n"] for entry in lines(path)] == list(range(100))
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_it_is_rotated_by_size_and_the_number_of_older_files_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    log = LogFile(path, as_it_is, max_bytes=1000, backups=2)
    for number in range(200):
        log.write({"n": number, "text": "x" * 80})
    log.close()
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.jsonl.1", "a.jsonl.2"]
    kept = [entry["n"] for name in ("a.jsonl.2", "a.jsonl.1", "a.jsonl") for entry in lines(tmp_path / name)]
    assert kept == list(range(kept[0], 200))
    assert all((tmp_path / name).stat().st_size <= 1000 for name in os.listdir(tmp_path))


def test_two_programs_may_write_one_file_and_rotate_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    program = (
        "import sys; from wan_compat.supervisor.log_file import LogFile\n"
        "log = LogFile(sys.argv[1], lambda document: document, max_bytes=4000, backups=50)\n"
        "for number in range(300): log.write({'who': sys.argv[2], 'n': number, 'text': 'x' * 50})\n"
        "log.close()"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(path), who]) for who in "ab"]
    assert [process.wait(60) for process in both] == [0, 0]
    entries = [entry for name in os.listdir(tmp_path) for entry in lines(tmp_path / name)]
    for who in "ab":
        assert sorted(entry["n"] for entry in entries if entry["who"] == who) == list(range(300))


def test_a_line_that_was_cut_off_ends_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"torn": ')
    path.chmod(0o600)
    log = LogFile(path, as_it_is)
    log.write({"n": 1})
    log.close()
    assert path.read_text() == '{"torn": \n{"n": 1}\n'


def test_a_file_that_goes_away_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    log = LogFile(path, as_it_is)
    log.write({"n": 1})
    while not path.read_text():
        time.sleep(0.001)
    path.unlink()
    log.write({"n": 2})
    log.close()
    assert lines(path) == [{"n": 2}]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "writable by others", "foreign folder"])
def test_what_is_no_log_of_ones_own_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(victim)
        case "fifo":
            os.mkfifo(path, 0o600)
        case "folder":
            path.mkdir()
        case "writable by others":
            path.write_text("")
            path.chmod(0o666)
        case "foreign folder":
            path = Path("/proc/1/a.jsonl")
    with pytest.raises(OutputNotWritable) as caught:
        LogFile(path, as_it_is)
    assert "a.jsonl" in caught.value.message and caught.value.fixes
    assert victim.read_text() == "precious"


def test_lines_that_could_not_be_written_are_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    log = LogFile(path, as_it_is)
    # A full disk takes a part of a line and then nothing.
    real, full, wrote = os.write, threading.Event(), threading.Event()

    def write(descriptor: int, data: bytes) -> int:
        if full.is_set() and data.startswith(b"{"):
            wrote.set()
            return real(descriptor, data[:5])
        return real(descriptor, data)

    monkeypatch.setattr(log_file_module.os, "write", write)
    log.write({"n": 1})
    while not path.read_text():
        time.sleep(0.001)
    full.set()
    log.write({"n": 2})
    assert wrote.wait(10)
    while log._lost == 0:
        time.sleep(0.001)
    full.clear()
    log.write({"n": 3})
    log.close()
    written = path.read_text().splitlines()
    assert written[0] == '{"n": 1}' and written[1] == '{"n":'
    assert json.loads(written[2]) == {"time": None, "level": "warning", "event": "lines_lost", "count": 1}
    assert json.loads(written[3]) == {"n": 3}


def test_no_job_waits_for_a_log_that_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file_module, "MAX_WAITING", 10)
    stuck, go_on = threading.Event(), threading.Event()

    def encode(document: Any) -> Any:
        stuck.set()
        assert go_on.wait(30)
        return document

    log = LogFile(tmp_path / "a.jsonl", encode)
    log.write({"n": 0})
    assert stuck.wait(10)
    for number in range(1, 1000):
        log.write({"n": number})
    go_on.set()
    while len(lines(tmp_path / "a.jsonl")) < 11:
        time.sleep(0.001)
    log.write({"n": 1000})
    log.close()
    entries = lines(tmp_path / "a.jsonl")
    assert next(entry for entry in entries if entry.get("event") == "lines_lost")["count"] == 989
    assert entries[-1] == {"n": 1000}


def test_a_jobs_life_is_told_with_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    supervisor = Supervisor()
    log = JobLog(supervisor, path)
    job = make_job(seed=42)
    log.queued(job)
    for event in (
        ev.PhaseStarted("start_worker"),
        ev.Started("A", ("namespaces", "seccomp")),
        ev.Progress("denoise", 1, 4),
        ev.Warned("slow"),
        ev.Recovering("out of memory", "offload"),
        ev.Ended(MemoryExceeded("used 25 GB", hint="use less")),
        ev.Ended(JobCancelled("stopped")),
    ):
        log.event(job, event)
    log.close()
    entries = lines(path)
    assert [(entry["level"], entry["event"]) for entry in entries] == [
        ("info", "supervisor_started"),
        ("info", "job_queued"),
        ("info", "phase_started"),
        ("info", "worker_confined"),
        ("warning", "warned"),
        ("warning", "recovering"),
        ("error", "job_failed"),
        ("info", "job_cancelled"),
        ("info", "supervisor_closed"),
    ]
    assert {entry["supervisor"] for entry in entries} == {supervisor.id}
    assert {entry["pid"] for entry in entries} == {os.getpid()}
    assert all(set(entry) == set(entries[0]) for entry in entries)
    assert {(entry["job"], entry["model"]) for entry in entries[1:-1]} == {("j7", "org/model")}
    assert entries[1]["data"]["seed"] == 42 and entries[1]["data"]["label"] == "first"
    assert entries[4]["message"] == "slow"
    assert entries[6]["code"] == "memory_exceeded" and entries[6]["data"]["fixes"] == ["use less"]
    assert entries[0]["time"].endswith("Z")


def test_prompts_homes_tokens_and_controls_do_not_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    path = tmp_path / "a.jsonl"
    log = JobLog(Supervisor(), path)
    job = make_job(negative_prompt="no secrets please")
    log.queued(job)
    log.event(job, ev.Warned("\x1b]0;owned\x07 /home/ann/models/x hf_" + "a" * 30 + " \u202e"))
    log.close()
    text = path.read_text()
    for secret in (
        "a red fox",
        "a-red-fox",
        "no secrets please",
        "/home/ann",
        "hf_aaa",
        "\x1b",
        "\u202e",
        "\\u202e",
        "\\u001b",
    ):
        assert secret not in text
    queued, warned = lines(path)[1:3]
    assert queued["data"]["prompt"] == "<9 characters>"
    assert queued["data"]["output"] == "/x/0001-<prompt>-7.mp4"
    assert "_prompt" not in queued
    assert warned["message"] == "\\x1b]0;owned\\x07 ~/models/x <redacted> \\u{202e}"


def test_prompts_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    log = JobLog(Supervisor(), tmp_path / "a.jsonl", prompts=True)
    log.queued(make_job())
    log.close()
    queued = lines(tmp_path / "a.jsonl")[1]["data"]
    assert queued["prompt"] == "a red fox" and queued["output"] == "/x/0001-a-red-fox-7.mp4"


def test_a_supervisor_logs_its_jobs_and_its_notes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Supervisor() as supervisor:
        observe(supervisor, log_file=path)
        job = supervisor.submit(
            GenerationRequest(model=str(tmp_path / "none"), prompt="x", output=str(tmp_path / "v.mp4"))
        )
        assert job.state in ("queued", "running", "failed")
        with pytest.raises(Exception, match="none"):
            job.result(30)
        supervisor.kill_worker("w1")
    told = [entry["event"] for entry in lines(path)]
    assert told[0] == "supervisor_started" and told[-1] == "supervisor_closed"
    assert "job_queued" in told and "job_failed" in told
    failed = next(entry for entry in lines(path) if entry["event"] == "job_failed")
    assert failed["code"] == "model_not_found" and failed["job"] == "j1"


def test_a_supervisor_takes_both_or_neither(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Supervisor(log_file=path, metrics=tmp_path / "wan.prom"):
        pass
    assert [entry["event"] for entry in lines(path)] == ["supervisor_started", "supervisor_closed"]
    assert "wan_compat_info" in (tmp_path / "wan.prom").read_text()
    with pytest.raises(InvalidRequest):
        Supervisor(log_file=tmp_path / "b.jsonl", metrics="0.0.0.0:1")
    assert [entry["event"] for entry in lines(tmp_path / "b.jsonl")] == ["supervisor_started", "supervisor_closed"]


def test_an_observer_that_fails_is_let_go_and_the_job_goes_on(tmp_path: Path) -> None:
    from wan_compat.supervisor.observers import Observer

    class Broken(Observer):
        name = "the broken one"

        def event(self, job: Job[Any], event: ev.Event) -> None:
            raise RuntimeError("no")

    with Supervisor() as supervisor:
        supervisor.observers.add(Broken())
        job = supervisor.submit(
            GenerationRequest(model=str(tmp_path / "none"), prompt="x", output=str(tmp_path / "v.mp4"))
        )
        with pytest.raises(Exception, match="none"):
            job.result(30)
        texts = [note.text for note in supervisor.status().notes]
    assert "the broken one failed and was let go: RuntimeError: no" in texts
