"""State is read only from files that nobody else can have written; what is found unsafe is an error with a remedy."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from wan_compat.protocol.errors import StateCorrupt, StateUnsafe
from wan_compat.supervisor import private_files
from wan_compat.supervisor.private_files import PrivateFolder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state" / "wan-compat"


def test_what_was_written_is_read_and_private(place: Path) -> None:
    with PrivateFolder(place, create=True) as folder:
        assert folder.read("x.json", 100) is None
        for content in (b"one", b"two, longer"):
            folder.replace("x.json", content)
            assert folder.read("x.json", 100) == content
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert [item.name for item in place.iterdir()] == ["x.json"]
    assert stat.S_IMODE((place / "x.json").stat().st_mode) == 0o600


def test_reading_makes_nothing(place: Path) -> None:
    with PrivateFolder(place) as folder:
        assert not folder.exists and folder.read("x.json", 10) is None
    assert not place.parent.exists()


def test_the_platform_s_state_folder_is_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert private_files.state_folder() == tmp_path / "wan-compat"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_writable_by_others_is_an_error_with_its_remedy(place: Path, mode: int) -> None:
    with PrivateFolder(place, create=True) as folder:
        folder.replace("x.json", b"{}")
        (place / "x.json").chmod(mode)
        with pytest.raises(StateUnsafe, match="written by others") as caught:
            folder.read("x.json", 100)
    assert caught.value.hint and f"chmod go-w {place / 'x.json'}" in caught.value.hint


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_folder_writable_by_others_is_an_error_with_its_remedy(place: Path, mode: int) -> None:
    place.mkdir(parents=True)
    place.chmod(mode)
    with pytest.raises(StateUnsafe, match="written by others") as caught:
        PrivateFolder(place)
    assert caught.value.hint and f"chmod go-w {place}" in caught.value.hint


def test_folder_readable_by_others_is_closed(place: Path) -> None:
    place.mkdir(parents=True, mode=0o755)
    PrivateFolder(place).close()
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["folder", "file"])
def test_foreign_owner_is_an_error_with_its_remedy(place: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with PrivateFolder(place, create=True) as folder:
        folder.replace("x.json", b"{}")
        if os.geteuid() == 0:
            os.chown(place if what == "folder" else place / "x.json", 12345, 12345)
        else:  # who cannot give a file away becomes somebody else in the eyes of the check
            own = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        with pytest.raises(StateUnsafe, match="belongs to user") as caught:
            PrivateFolder(place) if what == "folder" else folder.read("x.json", 10)
    assert caught.value.hint and "chown" in caught.value.hint


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "folder"])
def test_anything_but_a_regular_file_is_refused_and_not_waited_for(place: Path, kind: str, tmp_path: Path) -> None:
    with PrivateFolder(place, create=True) as folder:
        target = tmp_path / "target"
        if kind == "link":
            target.write_bytes(b"{}")
        if "link" in kind:
            (place / "x.json").symlink_to(target)
        elif kind == "fifo":
            os.mkfifo(place / "x.json")
        else:
            (place / "x.json").mkdir()
        with pytest.raises(StateUnsafe):
            folder.read("x.json", 10)


def test_folder_that_is_a_link_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    place.parent.mkdir()
    place.symlink_to(tmp_path / "real")
    with pytest.raises(StateUnsafe):
        PrivateFolder(place, create=True)


def test_folder_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnsafe) as caught:
        PrivateFolder(tmp_path / "file" / "wan-compat", create=True)
    assert "XDG_STATE_HOME" in (caught.value.hint or "")


def test_a_file_beyond_its_bound_is_corrupt(place: Path) -> None:
    with PrivateFolder(place, create=True) as folder:
        folder.replace("x.json", b"x" * 101)
        with pytest.raises(StateCorrupt, match="100 bytes"):
            folder.read("x.json", 100)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with PrivateFolder(place, create=True) as folder:
        folder.replace("x.json", b"old")
        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            folder.replace("x.json", b"new")
        assert folder.read("x.json", 10) == b"old"
    assert [item.name for item in place.iterdir()] == ["x.json"]


def test_a_lock_excludes_and_a_holder_that_hangs_is_named(place: Path) -> None:
    with PrivateFolder(place, create=True) as first, PrivateFolder(place) as second:
        with first.lock("x.json"):
            with pytest.raises(StateUnsafe, match="another process"), second.lock("x.json", timeout_s=0.03):
                pass
        order: list[str] = []

        def hold() -> None:
            with second.lock("x.json"):
                order.append("second")

        with first.lock("x.json"):
            thread = threading.Thread(target=hold)
            thread.start()
            time.sleep(0.05)
            order.append("first")
        thread.join(10)
        assert order == ["first", "second"]
