"""A limit of the operating system is told as one, wherever it strikes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wan_compat.protocol.errors import DiskExceeded, InvalidRequest, MemoryExceeded, ResourceExceeded, WanCompatError
from wan_compat.supervisor.system_limits import limit_reached


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EMFILE, ResourceExceeded, "files open"),
        (errno.ENFILE, ResourceExceeded, "this machine"),
        (errno.EFBIG, ResourceExceeded, "no file larger than"),
        (errno.ENOSPC, DiskExceeded, "'/there' is full"),
        (errno.EDQUOT, DiskExceeded, "'/there' is full"),
        (errno.ENOMEM, MemoryExceeded, "no more memory"),
    ],
)
def test_a_limit_of_the_system_has_its_own_error(code: int, kind: type[WanCompatError], words: str) -> None:
    found = limit_reached(OSError(code, os.strerror(code), "/there"))
    assert type(found) is kind and words in found.message


def test_what_is_no_limit_stays_what_it_is() -> None:
    assert limit_reached(FileNotFoundError(errno.ENOENT, "No such file", "/there")) is None
    assert limit_reached(ValueError("5")) is None
    assert isinstance(limit_reached(MemoryError()), MemoryExceeded)


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        os.path.abspath("x")
    except FileNotFoundError as error:
        found = limit_reached(error)
    assert isinstance(found, InvalidRequest) and "was removed" in found.message
