"""The chain shows every removed, changed, moved and added line, and survives a program that is killed while it writes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wan_compat.protocol.errors import StateCorrupt, StateUnsafe
from wan_compat.supervisor import audit_log
from wan_compat.supervisor.audit_log import HEAD_NAME, LOG_NAME, MAX_LINE_BYTES, AuditEvent, AuditLog

WRITER = Path(__file__).resolve().parent.parent / "programs" / "audit_writer.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def log(folder: Path) -> AuditLog:
    return AuditLog(folder)


def filled(log: AuditLog, count: int = 5) -> AuditLog:
    for number in range(count):
        log.append(AuditEvent.FIRST_USE, model=f"model-{number}")
    return log


def lines(folder: Path) -> list[bytes]:
    return (folder / LOG_NAME).read_bytes().splitlines(keepends=True)


def test_nothing_recorded_is_whole_and_makes_nothing(log: AuditLog, folder: Path) -> None:
    verdict = log.verify()
    assert verdict.intact and verdict.entries == 0 and not folder.exists()


def test_entries_come_back_in_order_and_private(log: AuditLog, folder: Path) -> None:
    filled(log)
    verdict = log.verify()
    assert verdict.intact and verdict.entries == 5 and verdict.problem == ""
    assert [entry.seq for entry in log.entries()] == [1, 2, 3, 4, 5]
    assert [entry.fields for entry in log.entries()] == [{"model": f"model-{number}"} for number in range(5)]
    for name in (LOG_NAME, HEAD_NAME):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def edit(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / LOG_NAME).write_bytes(b"".join(change(lines(folder))))

    return apply


def rehash(line: bytes) -> bytes:
    data = json.loads(line)
    data["fields"]["model"] = "another"
    data["hash"] = audit_log._hash({key: value for key, value in data.items() if key != "hash"})
    return audit_log._canonical(data) + b"\n"


TAMPERING: dict[str, Callable[[Path], None]] = {
    "first line removed": edit(lambda found: found[1:]),
    "middle line removed": edit(lambda found: found[:2] + found[3:]),
    "last line removed": edit(lambda found: found[:-1]),
    "last two lines removed": edit(lambda found: found[:-2]),
    "all lines removed": edit(lambda found: []),
    "cut off in the last line": edit(lambda found: [*found[:-1], found[-1][:-9]]),
    "last line break removed": edit(lambda found: [*found[:-1], found[-1][:-1]]),
    "two lines exchanged": edit(lambda found: [found[0], found[2], found[1], *found[3:]]),
    "a line twice": edit(lambda found: [*found[:3], found[2], *found[3:]]),
    "the last line twice": edit(lambda found: [*found, found[-1]]),
    "a character changed": edit(lambda found: [*found[:2], found[2].replace(b"model-2", b"model-9"), *found[3:]]),
    "the last line changed": edit(lambda found: [*found[:-1], found[-1].replace(b"model-4", b"model-9")]),
    "a line changed with its hash": edit(lambda found: [*found[:2], rehash(found[2]), *found[3:]]),
    "the last line changed with its hash": edit(lambda found: [*found[:-1], rehash(found[-1])]),
    "a space added": edit(lambda found: [*found[:2], found[2].replace(b":", b": ", 1), *found[3:]]),
    "an empty line": edit(lambda found: [*found[:2], b"\n", *found[2:]]),
    "no JSON": edit(lambda found: [*found[:2], b"\xff\xfe nonsense\n", *found[3:]]),
    "an array": edit(lambda found: [*found[:2], b"[]\n", *found[3:]]),
    "deep JSON": edit(lambda found: [*found[:2], b"[" * 4000 + b"\n", *found[3:]]),
    "an endless line": edit(lambda found: [*found, b"x" * (MAX_LINE_BYTES + 10)]),
    "two lines without a head": edit(lambda found: [*found, b"{}\n", b"{}\n"]),
    "log gone": lambda folder: (folder / LOG_NAME).unlink(),
    "head gone": lambda folder: (folder / HEAD_NAME).unlink(),
    "head of nothing": lambda folder: (folder / HEAD_NAME).write_bytes(b"") and None,
    "head is nonsense": lambda folder: (folder / HEAD_NAME).write_bytes(b'{"seq":true}') and None,
    "head of an empty log": lambda folder: (
        (folder / HEAD_NAME).write_bytes(audit_log._canonical({"seq": 0, "hash": "0" * 64, "end": 0})) and None
    ),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_found_and_nothing_is_appended_to_hide_it(how: str, log: AuditLog, folder: Path) -> None:
    filled(log)
    TAMPERING[how](folder)
    verdict = log.verify()
    assert not verdict.intact and verdict.problem and "mv " in verdict.remedy, verdict
    before = {name.name: name.read_bytes() for name in folder.iterdir()}
    noticed_by_append = {"last", "all", "log", "head", "cut", "an endless", "two lines without"}
    if any(how.startswith(word) or how.startswith(f"the {word}") for word in noticed_by_append):
        with pytest.raises(StateCorrupt) as caught:
            log.append(AuditEvent.REFUSED, code="x")
        assert "mv " in (caught.value.hint or "")
        assert {name.name: name.read_bytes() for name in folder.iterdir()} == before
    assert not log.verify().intact


def test_the_line_of_the_damage_is_named(log: AuditLog, folder: Path) -> None:
    filled(log)
    TAMPERING["middle line removed"](folder)
    verdict = log.verify()
    assert (verdict.line, verdict.entries) == (3, 2)
    assert [entry.seq for entry in log.entries()] == [1, 2]


def test_after_both_files_were_put_aside_a_new_chain_starts(log: AuditLog, folder: Path) -> None:
    filled(log)
    TAMPERING["middle line removed"](folder)
    for name in (LOG_NAME, HEAD_NAME):
        (folder / name).rename(folder / f"{name}.broken")
    filled(log, 2)
    assert log.verify().entries == 2 and log.verify().intact


@pytest.mark.parametrize(("where", "entries"), [("half", 1), ("before head", 2)])
def test_kill_9_in_the_middle_of_an_append_loses_no_finished_entry(
    where: str, entries: int, log: AuditLog, folder: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(folder), where], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() in (b"half\n", b"line\n")
        writer.kill()
    verdict = log.verify()
    assert verdict.intact and verdict.entries == entries
    assert (verdict.unfinished_bytes > 0) == (where == "half")
    log.append(AuditEvent.INCIDENT, kind="after the crash")
    verdict = log.verify()
    assert verdict.intact and verdict.entries == entries + 1 and verdict.unfinished_bytes == 0


def test_kill_9_at_any_moment_keeps_the_chain(log: AuditLog, folder: Path) -> None:
    for entries in (1, 7, 20):
        with subprocess.Popen([sys.executable, str(WRITER), str(folder)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            said = [int(writer.stdout.readline()) for _ in range(entries)][-1]
            writer.kill()
        verdict = log.verify()
        assert verdict.intact and verdict.entries >= said


def test_processes_and_threads_that_append_at_once_make_one_chain(log: AuditLog, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wan_compat.supervisor.audit_log import AuditEvent, AuditLog\n"
        "for n in range(15): AuditLog(Path(sys.argv[1])).append(AuditEvent.REFUSED, code=str(n))"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(folder)]) for _ in range(2)]
    threads = [threading.Thread(target=filled, args=(log, 15)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [process.wait(30) for process in others] == [0, 0]
    verdict = log.verify()
    assert verdict.intact and verdict.entries == 60


def test_text_is_cleaned_and_bounded_and_cannot_forge_a_line(log: AuditLog, folder: Path) -> None:
    log.append(
        AuditEvent.REFUSED,
        model='\x1b[2J\u202e\n{"seq": 2}' + "\U0001f98a" * 5000,
        files=["\x07"] * 500,
        **{f"more{number}": "é" * 5000 for number in range(50)},
    )
    content = (folder / LOG_NAME).read_bytes()
    assert content.count(b"\n") == 1 and content.isascii() and len(content) <= MAX_LINE_BYTES
    entry = log.entries()[0]
    assert entry.fields["model"].startswith("\\x1b[2J\\u{202e}\\n{") and log.verify().intact


def test_a_full_log_is_told_and_not_rotated_in_silence(
    log: AuditLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(log)
    monkeypatch.setattr(audit_log, "MAX_LOG_BYTES", (folder / LOG_NAME).stat().st_size)
    with pytest.raises(StateUnsafe, match="reached"):
        log.append(AuditEvent.REFUSED, code="x")
    assert log.verify().entries == 5


@pytest.mark.parametrize("name", [LOG_NAME, HEAD_NAME])
def test_log_that_others_can_write_is_an_error_in_both_directions(name: str, log: AuditLog, folder: Path) -> None:
    filled(log)
    (folder / name).chmod(0o666)
    with pytest.raises(StateUnsafe, match="written by others"):
        log.append(AuditEvent.REFUSED, code="x")
    verdict = log.verify()
    assert not verdict.intact and "chmod go-w" in verdict.remedy


def test_noting_never_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert audit_log.note(AuditEvent.REFUSED, code="x")
    (tmp_path / "wan-compat" / LOG_NAME).chmod(0o666)
    assert not audit_log.note(AuditEvent.REFUSED, code="x")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "wan-compat" / LOG_NAME))
    assert not audit_log.note(AuditEvent.REFUSED, code="x")


def test_a_full_disk_is_a_typed_error(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(log, 1)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StateUnsafe, match="No space"):
        log.append(AuditEvent.REFUSED, code="x")
    monkeypatch.undo()
    assert log.verify().intact
