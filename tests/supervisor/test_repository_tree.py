"""A repository is read to the byte or not at all: links, special files, odd names, changes while reading."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from wan_compat.policies import trust
from wan_compat.protocol.errors import ModelCorrupt, ModelInvalid, ModelNotFound, ModelUnreadable
from wan_compat.supervisor import repository_tree
from wan_compat.supervisor.repository_tree import identify, read_tree


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "pipeline.py").write_text("import torch\n")
    (folder / "vae" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A repository as the Hugging Face cache keeps it."""
    base = tmp_path / "hub" / "models--org--name"
    folder = base / "snapshots" / ("c" * 40)
    (folder / "vae").mkdir(parents=True)
    (base / "blobs").mkdir()
    for name, up in (("model_index.json", "../.."), ("vae/config.json", "../../..")):
        blob = base / "blobs" / hashlib.sha1(name.encode()).hexdigest()
        blob.write_text(name)
        (folder / name).symlink_to(f"{up}/blobs/{blob.name}")
    return folder


def test_every_file_with_size_and_hash(model: Path) -> None:
    tree = read_tree(str(model))
    assert [file.path for file in tree.files] == ["model_index.json", "pipeline.py", "vae/config.json"]
    assert tree.files[1].sha256 == hashlib.sha256(b"import torch\n").hexdigest() and tree.files[1].size == 13
    assert (tree.source, tree.revision, tree.root) == (str(model), None, str(model))
    assert [fact.real_path for fact in tree.facts] == [str(model / file.path) for file in tree.files]


def test_a_snapshot_is_known_by_repository_and_commit_and_its_links_are_read(snapshot: Path) -> None:
    tree = read_tree(str(snapshot))
    assert (tree.source, tree.revision) == ("org/name", "c" * 40)
    assert {file.path: file.size for file in tree.files} == {"model_index.json": 16, "vae/config.json": 15}
    assert all("/blobs/" in fact.real_path for fact in tree.facts) and tree.excluded == ()


@pytest.mark.parametrize("target", ["../../blobs/../../secret", "/etc/hostname", "../../blobs/x/y", "vae", "../.."])
def test_a_snapshots_link_to_anywhere_else_is_left_out(snapshot: Path, target: str) -> None:
    (snapshot / "evil.py").symlink_to(target)
    tree = read_tree(str(snapshot))
    assert tree.excluded == (("evil.py", "a link"),) and len(tree.files) == 2


def test_a_link_in_a_snapshots_blobs_is_not_followed(snapshot: Path) -> None:
    (snapshot.parent.parent / "blobs" / "bad").symlink_to("/etc/hostname")
    (snapshot / "evil.py").symlink_to("../../blobs/bad")
    with pytest.raises(ModelCorrupt, match=r"evil\.py"):
        read_tree(str(snapshot))


def test_links_special_and_hidden_files_are_left_out_and_named(model: Path) -> None:
    (model / "link.py").symlink_to("pipeline.py")
    (model / "folder").symlink_to("/etc")
    os.mkfifo(model / "fifo")
    (model / ".git").mkdir()
    (model / ".git" / "hook.py").write_text("x")
    tree = read_tree(str(model))
    assert tree.excluded == (
        (".git", "hidden"),
        ("fifo", "no regular file"),
        ("folder", "a link"),
        ("link.py", "a link"),
    )
    assert len(tree.files) == 3


def test_the_folder_may_be_named_through_a_link_and_is_known_by_its_real_path(model: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(model)
    assert read_tree(str(tmp_path / "alias")) == read_tree(str(model))
    assert identify(str(tmp_path / "alias"))[1] == str(model)


def test_weights_beyond_the_limit_are_not_read(model: Path) -> None:
    weights = model / "big.safetensors"
    with weights.open("wb") as file:
        file.truncate(trust.WEIGHT_HASH_LIMIT_BYTES + 1)
    (model / "small.safetensors").write_bytes(b"x")
    found = {file.path: file.sha256 for file in read_tree(str(model)).files}
    assert found["big.safetensors"] is None and found["small.safetensors"] is not None


def test_a_name_that_is_not_utf8_is_a_typed_error(model: Path) -> None:
    with open(os.fsencode(model) + b"/evil\xff.py", "w") as file:
        file.write("x")
    with pytest.raises(ModelInvalid, match="UTF-8"):
        read_tree(str(model))


def test_a_folder_whose_path_is_not_utf8_is_a_typed_error(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/m\xff"
    os.mkdir(folder)
    with pytest.raises(ModelInvalid, match="UTF-8"):
        read_tree(os.fsdecode(folder))


def test_more_files_than_any_model_has_is_a_typed_error_and_quick(model: Path) -> None:
    for number in range(repository_tree.MAX_FILES):
        os.close(os.open(model / f"{number}.py", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(ModelCorrupt, match="10000 files"):
        read_tree(str(model))


def test_hidden_entries_are_bounded_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository_tree, "MAX_ENTRIES", 20)
    for number in range(20):
        (model / f".{number}").write_text("")
    with pytest.raises(ModelCorrupt, match="20 entries"):
        read_tree(str(model))


def test_endless_folders_are_a_typed_error(model: Path) -> None:
    (model / Path(*["d"] * 20)).mkdir(parents=True)
    with pytest.raises(ModelCorrupt, match="nested"):
        read_tree(str(model))


@pytest.mark.parametrize("path", ["nowhere", "model/pipeline.py", ""])
def test_what_is_no_folder_is_a_typed_error(path: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises((ModelNotFound, ModelCorrupt)):
        read_tree(str(tmp_path / path) if path else str(tmp_path / "none"))


def test_an_empty_folder_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="no files"):
        read_tree(str(tmp_path))


def test_a_file_that_may_not_be_read_is_a_typed_error(model: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (model / "pipeline.py").chmod(0)
    with pytest.raises(ModelUnreadable, match=r"pipeline\.py"):
        read_tree(str(model))


def test_a_file_that_changes_while_it_is_read_is_a_typed_error(model: Path) -> None:
    target = model / "growing.json"
    target.write_bytes(b"x" * (32 << 20))
    stop = threading.Event()

    def grow() -> None:
        with target.open("r+b") as file:
            while not stop.is_set():
                file.seek(0, os.SEEK_END)
                file.write(b"x" * 4096)
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(ModelInvalid, match="changed while it was read"):
            read_tree(str(model))
    finally:
        stop.set()
        writer.join()
