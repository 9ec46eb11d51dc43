"""Hashes are right, remembered for as long as a file is what it was, and never of a file that changed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from wan_compat.protocol.errors import ModelUnreadable
from wan_compat.supervisor import hashing
from wan_compat.supervisor.hashing import FileChanged, FileIdentity, HashCache, HashRequest, hash_files


def request(path: Path) -> HashRequest:
    return HashRequest(str(path), FileIdentity.of(path.stat()))


@pytest.fixture
def files(tmp_path):
    made = []
    for number, size in enumerate([0, 1, 1000, 5_000_000, 9_000_001]):
        path = tmp_path / f"weights{number}"
        path.write_bytes(os.urandom(1000) * (size // 1000) + b"x" * (size % 1000))
        made.append(path)
    return made


@pytest.fixture
def settled(monkeypatch):
    """Files that were just written count as settled."""
    monkeypatch.setattr(hashing, "SETTLED_NS", -1)


def test_hashes_are_those_of_the_bytes(files):
    for threads in (1, 3, None):
        found = hash_files([request(path) for path in files], threads=threads)
        assert found == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_progress_ends_with_everything(files):
    seen = []
    hash_files([request(path) for path in files], progress=lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in files)
    assert seen[-1] == (total, total) and all(done <= total for done, _ in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_remembered_is_not_read_again(files, tmp_path, settled, monkeypatch):
    requests = [request(path) for path in files]
    cache = HashCache(tmp_path / "cache")
    first = hash_files(requests, cache=cache)
    assert cache.save()
    again = HashCache(tmp_path / "cache")
    monkeypatch.setattr(hashing, "hash_file", lambda *_: pytest.fail("read again"))
    assert hash_files(requests, cache=again) == first
    assert not again.save()
    assert (tmp_path / "cache" / "hashes.json").stat().st_mode & 0o777 == 0o600


def test_a_file_with_other_content_and_old_times_is_read_again(files, tmp_path, settled):
    path = files[3]
    before = path.stat()
    cache = HashCache(tmp_path / "cache")
    hash_files([request(path)], cache=cache)
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = hash_files([request(path)], cache=cache)
    assert found[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    path = tmp_path / "young"
    path.write_bytes(b"x")
    cache = HashCache(tmp_path / "cache")
    hash_files([request(path)], cache=cache)
    assert cache.get(FileIdentity.of(path.stat())) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 1, "sha256": {"1:2": "x"}}', b"\xff", b"[" * 100_000],
)
def test_a_corrupt_cache_is_an_empty_one(content, files, tmp_path, settled):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / "hashes.json").write_bytes(content)
    (folder / "hashes.json").chmod(0o600)
    cache = HashCache(folder)
    found = hash_files([request(files[1])], cache=cache)
    assert cache.save()
    kept = json.loads((folder / "hashes.json").read_text())["sha256"]
    assert list(kept.values()) == list(found.values())


def test_a_cache_that_others_could_have_written_is_not_believed(files, tmp_path, settled):
    folder = tmp_path / "cache"
    cache = HashCache(folder)
    cache.put(FileIdentity.of(files[1].stat()), "0" * 64)
    assert cache.save()
    (folder / "hashes.json").chmod(0o666)
    assert HashCache(folder).get(FileIdentity.of(files[1].stat())) is None
    (folder / "hashes.json").unlink()
    (folder / "hashes.json").symlink_to(files[1])
    assert HashCache(folder).get(FileIdentity.of(files[1].stat())) is None


def test_two_writers_keep_each_others_hashes(files, tmp_path, settled):
    first, second = HashCache(tmp_path / "cache"), HashCache(tmp_path / "cache")
    hash_files([request(files[1])], cache=first)
    hash_files([request(files[2])], cache=second)
    assert first.save() and second.save()
    both = HashCache(tmp_path / "cache")
    assert all(both.get(FileIdentity.of(path.stat())) for path in files[1:3])


def test_a_cache_keeps_a_bounded_number(tmp_path, monkeypatch, settled):
    monkeypatch.setattr(hashing, "MAX_CACHE_ENTRIES", 10)
    cache = HashCache(tmp_path / "cache")
    for number in range(30):
        cache.put(FileIdentity(1, number, 1, 1, 1), f"{number:064x}")
    assert cache.save()
    kept = HashCache(tmp_path / "cache")
    assert [kept.get(FileIdentity(1, number, 1, 1, 1)) is not None for number in (0, 19, 20, 29)] == [
        False,
        False,
        True,
        True,
    ]


def test_another_file_of_the_same_name_is_an_error(files):
    listed = request(files[2])
    files[2].unlink()
    files[2].write_bytes(b"x" * 1000)
    with pytest.raises(FileChanged):
        hash_files([listed])


def test_a_link_or_fifo_in_its_place_is_not_read(files):
    listed = [request(files[1]), request(files[2])]
    files[1].rename(files[1].with_name("moved"))
    files[1].symlink_to(files[1].with_name("moved"))
    files[2].unlink()
    os.mkfifo(files[2])
    with pytest.raises(ModelUnreadable):
        hash_files(listed[:1])
    with pytest.raises(FileChanged):
        hash_files(listed[1:])


def test_a_file_that_changes_while_it_is_read_is_an_error(files):
    listed = request(files[4])

    def write_once(_):
        if files[4].stat().st_size == listed.identity.size:
            with files[4].open("ab") as file:
                file.write(b"more")

    with pytest.raises(FileChanged, match="while it was read"):
        hashing.hash_file(listed, write_once)


def test_one_bad_file_ends_the_others(files, tmp_path):
    big = tmp_path / "big"
    big.write_bytes(b"")
    os.truncate(big, 64 << 30)  # sparse: reading it all would take a minute
    listed = [request(big), HashRequest(str(tmp_path / "gone"), FileIdentity(1, 1, 1, 1, 1))]
    started = time.monotonic()
    with pytest.raises(ModelUnreadable):
        hash_files(listed, threads=2)
    assert time.monotonic() - started < 10
