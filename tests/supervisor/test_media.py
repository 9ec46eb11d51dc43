"""What a user names as a picture or video is copied once, sealed, and only if it is a regular file of a sane size."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MAX_MEDIA_BYTES, MediaSpec
from wan_compat.supervisor.media import copied_media


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_the_copy_has_the_bytes_and_nobody_can_change_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(b"one" * 1000)
    second.write_bytes(b"two")
    before = open_descriptors()
    with copied_media((("image", str(first)), ("reference", str(second)))) as files:
        first.write_bytes(b"changed")
        assert files.specs == (MediaSpec(role="image", bytes=3000), MediaSpec(role="reference", bytes=3))
        memory = files.descriptors[0]
        assert os.pread(memory, 4000, 0) == b"one" * 1000
        for change in (
            lambda: os.pwrite(memory, b"x", 0),
            lambda: os.ftruncate(memory, 1),
            lambda: os.ftruncate(memory, 5000),
        ):
            with pytest.raises(PermissionError):
                change()
        assert not os.get_inheritable(memory)
    assert open_descriptors() <= before


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo, empty, huge, folder = tmp_path / "fifo", tmp_path / "empty", tmp_path / "huge", tmp_path / "folder"
    os.mkfifo(fifo)
    empty.touch()
    folder.mkdir()
    with huge.open("wb") as file:
        file.truncate(MAX_MEDIA_BYTES + 1)
    before = open_descriptors()
    cases = {
        str(fifo): "no regular file",
        "/dev/zero": "no regular file",
        str(folder): "no regular file",
        str(empty): "is empty",
        "/proc/self/environ": "is empty",
        str(huge): "larger than 512 MiB",
        str(tmp_path / "absent"): "No such file",
        "a\0b": "NUL",
    }
    for path, told in cases.items():
        with pytest.raises(InvalidRequest, match=told) as caught, copied_media((("image", path),)):
            pass
        assert caught.value.exit_code == 2
    assert open_descriptors() <= before


def test_an_error_at_the_second_file_gives_the_first_back(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"x")
    before = open_descriptors()
    with contextlib.suppress(InvalidRequest), copied_media((("video", str(good)), ("mask", "/dev/null"))):
        pytest.fail("a device was taken")
    assert open_descriptors() <= before


def test_all_files_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_compat.supervisor.media.MAX_ALL_MEDIA_BYTES", 1 << 20)
    path = tmp_path / "half"
    path.write_bytes(b"\0" * (600 << 10))
    before = open_descriptors()
    given = (("reference", str(path)), ("reference", str(path)))
    with pytest.raises(InvalidRequest, match="together"), copied_media(given):
        pass
    assert open_descriptors() <= before
