"""Where supervisors are looked for."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wan_compat.protocol.errors import NotServing
from wan_compat.supervisor import runtime
from wan_compat.supervisor.attach import find_supervisors
from wan_compat.supervisor.monitor.attached import AttachedSupervisors


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: sockets are bound in it."""
    with tempfile.TemporaryDirectory(prefix="wan-compat-at-") as folder:
        yield Path(folder)


@pytest.fixture
def living() -> Iterator[list[int]]:
    """Descriptors that stay open: held locks and listening sockets."""
    held: list[int] = []
    yield held
    for descriptor in held:
        os.close(descriptor)


def pretend(base: Path, id: str, living: list[int] | None) -> None:
    """Make what a supervisor leaves in its runtime folder; with `living`, its lock is held."""
    folder = base / id
    folder.mkdir(parents=True)
    base.chmod(0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "control"))
    if living is None:
        os.close(lock)
    else:
        fcntl.flock(lock, fcntl.LOCK_EX)
        living.append(lock)


def test_only_the_living_are_found(place: Path, living: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    pretend(place / "wan-compat", "lives", living)
    pretend(place / "wan-compat", "died", None)
    (place / "wan-compat" / "starts").mkdir()  # no socket yet
    (place / "wan-compat" / "serve").write_text("not a folder")
    assert [endpoint.id for endpoint in find_supervisors()] == ["lives"]
    source = AttachedSupervisors()
    assert list(source.find()) == ["lives"]
    with pytest.raises(NotServing):
        source.attach("died")
    with pytest.raises(NotServing):  # the lock is held, and nobody listens
        source.attach("lives")


def test_supervisors_outside_the_login_session_are_found_too(
    place: Path, living: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by cron or `su`, they have no XDG_RUNTIME_DIR and use the temporary folder."""
    elsewhere = place / f"wan-compat-{os.geteuid()}"
    pretend(elsewhere, "cron", living)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert "cron" in [endpoint.id for endpoint in find_supervisors()]
    elsewhere.chmod(0o777)  # anybody could have put it there
    if os.geteuid() == 0:  # for others it is their own base, and refused with a message
        assert "cron" not in [endpoint.id for endpoint in find_supervisors()]
    elsewhere.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "mine"))
    (place / "mine").mkdir()
    assert find_supervisors() == []
    assert runtime.runtime_bases() == [str(place / "mine" / "wan-compat")]
