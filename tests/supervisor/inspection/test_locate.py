"""MODEL may be a folder, a file, a place in the Hugging Face cache or a hub id in it; anything else is said plainly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.assets.weight_files import safetensors_file
from wan_compat.protocol import errors
from wan_compat.supervisor.inspection import read_facts, read_model

COMMIT = "0fad780a534b6463e45facd96134c9f345acfa5b"
OTHER = "1fad780a534b6463e45facd96134c9f345acfa5b"


def cached(
    cache: Path, repository: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", commits=(COMMIT,), main: str | None = COMMIT
):
    """Make a repository in a cache: every snapshot has model_index.json, and weights, as links into blobs."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "index").write_text('{"_class_name": "WanPipeline"}')
    (folder / "blobs" / "weights").write_bytes(safetensors_file({}))
    for commit in commits:
        snapshot = folder / "snapshots" / commit
        (snapshot / "vae").mkdir(parents=True)
        (snapshot / "model_index.json").symlink_to("../../blobs/index")
        (snapshot / "vae" / "x.safetensors").symlink_to("../../../blobs/weights")
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(main)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".cache" / "huggingface" / "hub"
    folder.mkdir(parents=True)
    return folder


def origin(facts):
    return facts.repository, facts.revision


HERE = ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", COMMIT)


def test_hub_id_means_the_snapshot_of_main(cache):
    folder = cached(cache, commits=(OTHER, COMMIT))
    facts = read_facts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert origin(facts) == HERE and facts.problems == ()
    assert facts.root == str(folder / "snapshots" / COMMIT)
    assert facts.index["_class_name"] == "WanPipeline"
    assert facts.files["vae/x.safetensors"].real_path == str(folder / "blobs" / "weights")
    assert read_model("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == facts


@pytest.mark.parametrize(
    ("variable", "value", "where"),
    [
        ("HF_HUB_CACHE", "$PLACE/a", "a"),
        ("HUGGINGFACE_HUB_CACHE", "$PLACE/b", "b"),
        ("HF_HOME", "$PLACE/c", "c/hub"),
        ("HF_HOME", "~/d", "d/hub"),
        ("XDG_CACHE_HOME", "$PLACE/e", "e/huggingface/hub"),
    ],
)
def test_cache_is_where_huggingface_hub_has_it(cache, tmp_path, monkeypatch, variable, value, where):
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.setenv(variable, os.path.expandvars(value) if variable == "XDG_CACHE_HOME" else value)
    cached(tmp_path / where)
    assert origin(read_facts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")) == HERE


@pytest.mark.parametrize(
    "below", [".", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/vae", f"snapshots/{COMMIT}/vae/x.safetensors"]
)
def test_any_place_in_a_cached_repository_knows_its_origin(cache, below):
    facts = read_facts(os.path.join(cached(cache), below))
    assert origin(facts) == HERE and facts.problems == ()
    assert facts.is_file is below.endswith("safetensors")
    assert [path.rsplit("/", 1)[-1] for path in facts.weights] == ["x.safetensors"]


def test_only_snapshot_is_used_without_main(cache):
    assert origin(read_facts(str(cached(cache, main=None)))) == HERE


@pytest.mark.parametrize("main", [None, "../../../../../etc", "/etc", "", "nothing", "\x1b[31m", "x" * 300])
def test_main_that_names_no_snapshot_is_said_with_what_there_is(cache, main):
    folder = cached(cache, commits=(COMMIT, OTHER), main=main)
    with pytest.raises(errors.ModelNotFound, match="2 snapshots") as caught:
        read_facts(str(folder))
    assert str(folder / "snapshots") in caught.value.fixes[0]


def test_main_that_is_a_fifo_is_not_waited_for(cache):
    folder = cached(cache)
    (folder / "refs" / "main").unlink()
    os.mkfifo(folder / "refs" / "main")
    assert origin(read_facts(str(folder))) == HERE


def test_local_folder_comes_before_the_cache(cache, tmp_path):
    cached(cache)
    (tmp_path / "Wan-AI" / "Wan2.1-T2V-1.3B-Diffusers").mkdir(parents=True)
    facts = read_facts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert facts.files == {} and origin(facts) == (None, None)


@pytest.mark.parametrize(
    "path", ["Wan-AI/unknown", "a/b", "no-such-folder", "/no/such/folder", "a/../b", "", "x\0y", "a/b/c", "../..x/y"]
)
def test_what_is_not_there_is_not_found(cache, path):
    with pytest.raises(errors.ModelNotFound) as caught:
        read_facts(path)
    assert caught.value.fixes


def test_missing_hub_id_names_the_cache_and_the_download(cache):
    with pytest.raises(errors.ModelNotFound) as caught:
        read_facts("Wan-AI/unknown")
    assert str(cache) in caught.value.message and "Wan-AI/unknown" in caught.value.fixes[0]


def test_path_beyond_a_file_is_not_found(cache, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.ModelNotFound):
        read_facts(str(tmp_path / "file" / "x"))


def test_fifo_is_no_model_and_is_not_opened(cache, tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(errors.ModelNotFound, match="neither"):
        read_facts(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("kind", ["folder", "file", "parent"])
def test_unreadable_model_is_named_with_a_remedy(cache, tmp_path, kind):
    if os.geteuid() == 0:
        pytest.skip("root may read everything; the ordinary user's run of this suite tests it")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "x.safetensors").write_bytes(safetensors_file({}))
    target = folder / "x.safetensors" if kind == "file" else folder
    target.chmod(0)
    try:
        if kind == "file":
            assert [problem.code for problem in read_facts(str(target)).problems] == ["file_unreadable"]
        else:
            with pytest.raises(errors.ModelUnreadable) as caught:
                read_facts(str(folder / "x.safetensors" if kind == "parent" else folder))
            assert caught.value.fixes
    finally:
        target.chmod(0o700)


def test_blobs_that_lead_elsewhere_open_no_way_out(cache, tmp_path):
    folder = cached(cache)
    (tmp_path / "secrets").mkdir()
    (folder / "blobs").rename(tmp_path / "secrets" / "blobs")
    (folder / "blobs").symlink_to(tmp_path / "secrets" / "blobs")
    facts = read_facts(str(folder))
    assert facts.files == {} and {problem.code for problem in facts.problems} == {"path_escape"}
