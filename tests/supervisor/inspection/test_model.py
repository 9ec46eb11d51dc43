"""A hostile folder is read within limits: refused by name, never believed, never followed out."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat.protocol import errors
from wan_compat.supervisor import inspection
from wan_compat.supervisor.inspection.walk import MAX_ENTRIES


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), folder)
    return folder


def test_sound_folder_gives_files_configs_and_tensors(model):
    facts = inspection.read_model(str(model))
    assert facts.index["_class_name"] == "WanPipeline"
    assert facts.configs["vae"]["z_dim"] == 16
    assert facts.tensors["transformer"]["patch_embedding.weight"].shape[1:] == (16, 1, 2, 2)


def test_hugging_face_snapshot_is_followed_into_its_own_blobs(model, tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    for index, path in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{index:040x}"
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    facts = inspection.read_model(str(snapshot))
    assert facts.files["vae/config.json"].real_path.startswith(str(repository / "blobs"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "../../../../../../etc/shadow"])
def test_link_out_of_the_repository_is_refused(model, target):
    (model.parent / "secret").write_text("s")
    (model / "vae" / "config.json").unlink()
    (model / "vae" / "config.json").symlink_to(target)
    with pytest.raises(errors.ModelUnreadable, match="leads out"):
        inspection.read_model(str(model))


def test_link_from_a_snapshot_into_another_repository_is_refused(model, tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    other = tmp_path / "models--a--bc"  # a name that begins like ours must not pass for inside
    other.mkdir()
    (other / "secret").write_text("s")
    snapshot = repository / "snapshots" / "0123abcd"
    shutil.copytree(model, snapshot)
    (snapshot / "x.json").symlink_to(other / "secret")
    with pytest.raises(errors.ModelUnreadable, match="leads out"):
        inspection.read_model(str(snapshot))


def test_dangling_link_is_named(model):
    (model / "lost.safetensors").symlink_to("nowhere")
    with pytest.raises(errors.ModelCorrupt, match="link to nothing"):
        inspection.read_model(str(model))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.mknod(path, 0o600 | 0o140000)], ids=["fifo", "socket"])
def test_special_file_is_not_a_model_file_and_blocks_nothing(model, make):
    (model / "vae" / "config.json").unlink()
    make(str(model / "vae" / "config.json"))
    facts = inspection.read_model(str(model))
    assert "vae/config.json" not in facts.files


def test_file_of_another_user_is_named_with_a_remedy(model):
    if os.geteuid() == 0:
        pytest.skip("root may read every file; the ordinary user's run of this suite tests it")
    (model / "vae" / "config.json").chmod(0)
    with pytest.raises(errors.ModelUnreadable) as caught:
        inspection.read_model(str(model))
    assert caught.value.fixes


BAD_JSON = {
    "not json": b"{",
    "empty": b"",
    "not an object": b"[1]",
    "null": b"null",
    "duplicate key": b'{"_class_name": "WanPipeline", "_class_name": "EvilPipeline"}',
    "duplicate key deep inside": b'{"a": {"b": 1, "b": 2}}',
    "not utf-8": b'{"a": "\xff"}',
    "deep": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "deep list": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "large": b'{"a": "' + b"x" * (5 << 20) + b'"}',
    "huge number": b'{"a": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("case", BAD_JSON)
@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json"])
def test_bad_json_is_a_typed_error(model, case, name):
    (model / name).write_bytes(BAD_JSON[case])
    with pytest.raises(errors.ModelCorrupt, match=r"\.json"):
        inspection.read_model(str(model))


def test_folder_with_too_many_files_is_refused_early(tmp_path):
    for number in range(MAX_ENTRIES + 1):
        (tmp_path / f"{number}").touch()
    with pytest.raises(errors.ModelCorrupt, match="more than"):
        inspection.read_model(str(tmp_path))


def test_hidden_files_are_not_seen(model):
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("x")
    assert not any(path.startswith(".") for path in inspection.read_model(str(model)).files)


def test_hostile_file_names_are_clean_in_errors(model):
    (model / "\x1b[31mred").symlink_to("/etc/passwd")
    with pytest.raises(errors.ModelUnreadable) as caught:
        inspection.read_model(str(model))
    assert "\x1b" not in caught.value.message
