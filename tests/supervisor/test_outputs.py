"""Output files: refused early, written aside, named only when whole, and nothing of anybody's is lost."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from wan_compat.protocol.errors import (
    DiskExceeded,
    EncodingFailed,
    InvalidRequest,
    OutputExists,
    OutputNotWritable,
)
from wan_compat.supervisor import outputs
from wan_compat.supervisor.outputs import prepare_output

VIDEO = b"a video" * 1000


def write(target, data=VIDEO):
    with open(target.part_path, "wb") as part:
        part.write(data)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.fixture(autouse=True)
def no_descriptor_is_left():
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def test_committed_file_is_whole_hashed_and_has_the_umasks_mode(tmp_path):
    before = os.umask(0o027)
    try:
        with prepare_output(tmp_path / "fox.mp4") as target:
            assert stat.S_IMODE(os.stat(target.part_path).st_mode) == 0o600
            assert os.path.dirname(target.part_path) == str(tmp_path)
            write(target)
            digest, size = target.commit()
    finally:
        os.umask(before)
    assert names(tmp_path) == ["fox.mp4"]
    assert (digest, size) == (hashlib.sha256(VIDEO).hexdigest(), len(VIDEO))
    assert (tmp_path / "fox.mp4").read_bytes() == VIDEO
    assert stat.S_IMODE(os.stat(tmp_path / "fox.mp4").st_mode) == 0o640


def test_nothing_is_left_without_a_commit(tmp_path):
    with prepare_output(tmp_path / "fox.mp4") as target:
        write(target)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path, error):
    with pytest.raises(error), prepare_output(tmp_path / "fox.mp4") as target:
        write(target)
        raise error
    assert names(tmp_path) == []


def test_relative_path_is_fixed_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with prepare_output("fox.mp4") as target:
        monkeypatch.chdir("/")
        write(target)
        target.commit()
        assert target.path == str(tmp_path / "fox.mp4")
    assert names(tmp_path) == ["fox.mp4"]


def test_existing_file_is_refused_and_untouched(tmp_path):
    (tmp_path / "fox.mp4").write_text("mine")
    with pytest.raises(OutputExists, match="exists"):
        prepare_output(tmp_path / "fox.mp4")
    assert (tmp_path / "fox.mp4").read_text() == "mine"
    assert names(tmp_path) == ["fox.mp4"]


def test_overwriting_replaces_the_file_only_at_commit_and_keeps_its_mode(tmp_path):
    path = tmp_path / "fox.mp4"
    path.write_text("old")
    path.chmod(0o600)
    with prepare_output(path, overwrite=True) as target:
        write(target)
        assert path.read_text() == "old"
        target.commit()
    assert path.read_bytes() == VIDEO
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_failed_overwriting_keeps_the_old_file(tmp_path):
    (tmp_path / "fox.mp4").write_text("old")
    with prepare_output(tmp_path / "fox.mp4", overwrite=True) as target:
        write(target)
    assert (tmp_path / "fox.mp4").read_text() == "old"
    assert names(tmp_path) == ["fox.mp4"]


@pytest.mark.parametrize("means", ["renameat2", "link", "placeholder"])
def test_file_that_appeared_meanwhile_is_kept_and_so_is_the_video(tmp_path, monkeypatch, means):
    lose_means(monkeypatch, means)
    with prepare_output(tmp_path / "fox.mp4") as target:
        write(target)
        (tmp_path / "fox.mp4").write_text("theirs")
        with pytest.raises(OutputExists) as caught:
            target.commit()
    kept = caught.value.details["kept"]
    assert kept in caught.value.message and kept.endswith(".mp4")
    assert (tmp_path / "fox.mp4").read_text() == "theirs"
    assert Path(kept).read_bytes() == VIDEO
    assert names(tmp_path) == sorted(["fox.mp4", os.path.basename(kept)])


@pytest.mark.parametrize("means", ["renameat2", "link", "placeholder"])
def test_every_way_of_renaming_without_replacing_works(tmp_path, monkeypatch, means):
    lose_means(monkeypatch, means)
    with prepare_output(tmp_path / "fox.mp4") as target:
        write(target)
        target.commit()
    assert names(tmp_path) == ["fox.mp4"]
    assert (tmp_path / "fox.mp4").read_bytes() == VIDEO


def lose_means(monkeypatch, means):
    """Leave only the named way, as file systems without the better ones would."""
    if means != "renameat2":

        class Libc:
            def renameat2(self, *arguments):
                import ctypes

                ctypes.set_errno(errno.EINVAL)
                return -1

        monkeypatch.setattr(outputs.ctypes, "CDLL", lambda *args, **kwargs: Libc())
    if means == "placeholder":

        def link(*args, **kwargs):
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(outputs.os, "link", link)


def test_folder_that_took_the_name_meanwhile_costs_no_video(tmp_path):
    (tmp_path / "fox.mp4").write_text("old")
    with prepare_output(tmp_path / "fox.mp4", overwrite=True) as target:
        write(target)
        (tmp_path / "fox.mp4").unlink()
        (tmp_path / "fox.mp4").mkdir()
        with pytest.raises(OutputExists) as caught:
            target.commit()
    assert Path(caught.value.details["kept"]).read_bytes() == VIDEO


def test_two_jobs_with_one_name_do_not_share_a_part(tmp_path):
    with prepare_output(tmp_path / "fox.mp4") as first, prepare_output(tmp_path / "fox.mp4") as second:
        assert first.part_path != second.part_path
        write(first, b"first")
        write(second, b"second")
        first.commit()
        with pytest.raises(OutputExists):
            second.commit()
    assert (tmp_path / "fox.mp4").read_bytes() == b"first"


def test_part_that_was_replaced_is_not_committed(tmp_path):
    with prepare_output(tmp_path / "fox.mp4") as target:
        os.unlink(target.part_path)
        write(target, b"something else")
        with pytest.raises(OutputNotWritable, match="replaced"):
            target.commit()
    assert names(tmp_path) == []


def test_empty_part_is_not_committed(tmp_path):
    with prepare_output(tmp_path / "fox.mp4") as target, pytest.raises(EncodingFailed, match="nothing was written"):
        target.commit()
    assert names(tmp_path) == []


def test_output_is_committed_once(tmp_path):
    with prepare_output(tmp_path / "fox.mp4") as target:
        write(target)
        target.commit()
        with pytest.raises(ValueError, match="already"):
            target.commit()
        target.abort()
    assert names(tmp_path) == ["fox.mp4"]


@pytest.mark.parametrize("name", ["", "fox.mp4/", ".", "a\0b.mp4", "fox", ".mp4", "fox.exe", "fox.mp4.part"])
def test_impossible_names_are_refused(tmp_path, name):
    with pytest.raises(InvalidRequest):
        prepare_output(f"{tmp_path}/{name}" if name else "")
    assert names(tmp_path) == []


def test_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="too long") as caught:
        prepare_output(tmp_path / ("x" * 252 + ".mp4"))
    assert "shorter" in caught.value.fixes[0]


def test_longest_possible_name_works(tmp_path):
    name = "ä" * 125 + "x.mp4"  # 255 bytes, and the part's cut falls into a character
    assert len(os.fsencode(name)) == 255
    with prepare_output(tmp_path / name) as target:
        write(target)
        target.commit()
    assert names(tmp_path) == [name]


def test_missing_folder_is_refused_with_its_remedy(tmp_path):
    with pytest.raises(OutputNotWritable) as caught:
        prepare_output(tmp_path / "nowhere" / "fox.mp4")
    assert "create the folder" in caught.value.fixes[0]


def test_file_as_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable):
        prepare_output(tmp_path / "file" / "fox.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputNotWritable, match="Permission denied"):
            prepare_output(tmp_path / "fox.mp4")
    finally:
        tmp_path.chmod(0o700)


def test_folder_of_the_kernel_is_refused():
    with pytest.raises(OutputNotWritable):
        prepare_output("/proc/fox.mp4", min_free_bytes=0)


def test_folder_as_output_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "fox.mp4").mkdir()
    with pytest.raises(InvalidRequest, match="is a folder"):
        prepare_output(tmp_path / "fox.mp4", overwrite=True)


def test_pipe_as_output_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fox.mp4")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        prepare_output(tmp_path / "fox.mp4", overwrite=True)


def test_link_to_a_device_is_refused(tmp_path):
    (tmp_path / "fox.mp4").symlink_to("/dev/null")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        prepare_output(tmp_path / "fox.mp4", overwrite=True)


def test_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "fox.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.raises(InvalidRequest, match="leads nowhere"):
        prepare_output(tmp_path / "fox.mp4")
    assert names(tmp_path) == ["fox.mp4"]


def test_link_in_a_circle_is_refused(tmp_path):
    (tmp_path / "fox.mp4").symlink_to(tmp_path / "fox.mp4")
    with pytest.raises(InvalidRequest, match="leads nowhere"):
        prepare_output(tmp_path / "fox.mp4", overwrite=True)


def test_overwriting_through_a_link_replaces_the_file_and_keeps_the_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "video.mp4").write_text("old")
    (tmp_path / "fox.mp4").symlink_to("real/video.mp4")
    with pytest.raises(OutputExists):
        prepare_output(tmp_path / "fox.mp4")
    with prepare_output(tmp_path / "fox.mp4", overwrite=True) as target:
        assert os.path.dirname(target.part_path) == str(tmp_path / "real")
        write(target)
        target.commit()
    assert (tmp_path / "fox.mp4").is_symlink()
    assert (tmp_path / "real" / "video.mp4").read_bytes() == VIDEO
    assert names(tmp_path / "real") == ["video.mp4"]


def test_too_little_free_space_is_refused(tmp_path):
    with pytest.raises(DiskExceeded, match="MB free"):
        prepare_output(tmp_path / "fox.mp4", min_free_bytes=1 << 62)
    assert names(tmp_path) == []


def test_disk_that_fails_at_the_last_moment_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with prepare_output(tmp_path / "fox.mp4") as target:
        write(target)
        monkeypatch.setattr(outputs.os, "fsync", fsync)
        with pytest.raises(DiskExceeded, match="quota"):
            target.commit()
    assert names(tmp_path) == []
