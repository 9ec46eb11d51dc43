"""The journal on a disk: durable records, what a crash leaves of one, and what is nobody's crash."""

from __future__ import annotations

import json
import os
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wan_compat.policies.batch.progress import Shard
from wan_compat.policies.batch.records import RunEnded
from wan_compat.protocol.errors import DiskExceeded, JournalUnusable, OutputNotWritable
from wan_compat.supervisor.batch import journal as module
from wan_compat.supervisor.batch.journal import Follower, Journal


def record(number: int) -> RunEnded:
    return RunEnded(run="r", at=float(number), why="x" * number)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal-1-of-1.jsonl")


def filled(path: str, count: int = 3) -> bytes:
    with Journal(path, Shard()) as journal:
        for number in range(count):
            journal.append(record(number))
    return Path(path).read_bytes()


def test_records_are_there_for_the_next_process(path: str) -> None:
    filled(path)
    with Journal(path, Shard()) as journal:
        assert journal.records == [record(0), record(1), record(2)] and journal.cut_bytes == 0
        journal.append(record(3))
    with Journal(path, Shard()) as journal:
        assert len(journal.records) == 4
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def test_every_record_and_the_name_of_a_new_journal_are_synced(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    filled(path, 2)
    assert synced[0].startswith(path) and synced[0].endswith(".part")
    assert synced[1:] == [os.path.dirname(path), path, path]


def test_a_last_record_that_was_cut_anywhere_is_cut_away_and_the_others_stay(path: str) -> None:
    whole = filled(path)
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start + 1, len(whole)):
        Path(path).write_bytes(whole[:end])
        assert list(Follower().fresh([path])) == [record(0), record(1)]
        with Journal(path, Shard()) as journal:
            assert journal.records == [record(0), record(1)] and journal.cut_bytes == end - start
            journal.append(record(2))
        assert Path(path).read_bytes() == whole


def test_garbage_in_place_of_the_last_record_is_cut_too(path: str) -> None:
    whole = filled(path)
    for garbage in (b"\0" * 512, b"\xff\n", b"00000000 {}\n"):
        Path(path).write_bytes(whole + garbage)
        with Journal(path, Shard()) as journal:
            assert len(journal.records) == 3 and journal.cut_bytes == len(garbage)


def line(**fields: Any) -> bytes:
    text = json.dumps(fields).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


REFUSED: dict[str, tuple[Any, str]] = {
    "another version": (
        lambda whole: line(kind="wan-compat batch journal", version=7) + b"what it means\n",
        "version 7",
    ),
    "damage in the middle": (lambda whole: whole.replace(b'"x"', b'"y"', 1), "line 3 does not agree"),
    "a lost middle": (lambda whole: whole[:150] + whole[190:], "line"),
    "a record of a later kind": (lambda whole: whole + line(type="dreamt"), "line 5 holds a record"),
    "no header": (lambda whole: whole.split(b"\n", 1)[1], "line 1"),
    "nothing": (lambda _: b"", "line 1"),
    "something else": (lambda _: b"hello\n", "line 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_crash_leaves_is_refused_and_not_touched(name: str, path: str) -> None:
    change, message = REFUSED[name]
    Path(path).write_bytes(content := change(filled(path)))
    with pytest.raises(JournalUnusable, match=message) as caught:
        Journal(path, Shard())
    assert caught.value.fixes and caught.value.exit_code == 3
    with pytest.raises(JournalUnusable):
        list(Follower().fresh([path]))
    assert Path(path).read_bytes() == content


def test_a_link_or_a_pipe_in_its_place_is_not_followed(path: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(OutputNotWritable):
        Journal(path, Shard())
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(JournalUnusable, match="not a journal"):
        Journal(path, Shard())
    assert (tmp_path / "elsewhere").read_text() == "precious"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A disk that is full for this process: writing beyond fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_that_finds_no_room_leaves_nothing_and_can_be_written_later(path: str) -> None:
    with Journal(path, Shard()) as journal:
        journal.append(record(1))
        before = os.path.getsize(path)
        with files_no_larger_than(before + 20), pytest.raises(DiskExceeded):
            journal.append(record(2))
        assert os.path.getsize(path) == before
        journal.append(record(2))
    assert list(Follower().fresh([path])) == [record(1), record(2)]


def test_a_journal_that_finds_no_room_for_its_header_is_not_there(path: str) -> None:
    with files_no_larger_than(20), pytest.raises((DiskExceeded, OutputNotWritable)):
        Journal(path, Shard())
    assert os.listdir(os.path.dirname(path)) == []


def test_a_follower_sees_what_came_since_and_waits_for_the_end_of_a_line(path: str) -> None:
    follower = Follower()
    assert list(follower.fresh([path])) == []
    with Journal(path, Shard()) as journal:
        journal.append(record(1))
        assert list(follower.fresh([path])) == [record(1)]
        assert list(follower.fresh([path])) == []
        journal.append(record(2))
        text = Path(path).read_bytes()
        os.truncate(path, len(text) - 5)
        assert list(follower.fresh([path])) == []
        Path(path).write_bytes(text)
        assert list(follower.fresh([path])) == [record(2)]


def test_a_journal_has_a_greatest_size(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    monkeypatch.setattr(module, "MAX_JOURNAL_BYTES", 10)
    with pytest.raises(JournalUnusable):
        Journal(path, Shard())
