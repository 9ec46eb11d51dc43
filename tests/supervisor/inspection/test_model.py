"""Any layout becomes facts: refused by name, never believed, never followed out, and one flaw hides nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.assets.weight_files import file_fact, gguf_file, safetensors_file
from wan_compat.protocol import errors
from wan_compat.supervisor import inspection
from wan_compat.supervisor.inspection.budget import Budget
from wan_compat.supervisor.inspection.json_document import read_document
from wan_compat.supervisor.inspection.problems import Defect
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


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "../../../../../../../../../../etc/shadow"])
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


# ---- layouts ----------------------------------------------------------------------------------------------------------

WEIGHTS = safetensors_file({"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, bytes(12))
GGUF = gguf_file([("general.architecture", 8, "wan")], [("w", (3, 2), 30, 12)])
LAYOUTS = {
    "diffusers": {
        "model_index.json": b"{}", "transformer/config.json": b"{}", "vae/config.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors.index.json": b"{}",
        "transformer/diffusion_pytorch_model-00001-of-00001.safetensors": WEIGHTS,
        "scheduler/scheduler_config.json": b"{}", "tokenizer/tokenizer_config.json": b"{}",
        "image_processor/preprocessor_config.json": b"{}", "text_encoder/generation_config.json": b"{}",
    },
    "modular": {
        "modular_model_index.json": b"{}", "modular_config.json": b"{}", "transformer/config.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors": WEIGHTS, "block.py": b"import os",
    },
    "original": {
        "config.json": b"{}", "configuration.json": b"{}", "diffusion_pytorch_model.safetensors": WEIGHTS,
        "Wan2.1_VAE.pth": b"PK", "models_t5_umt5-xxl-enc-bf16.pth": b"PK", "google/umt5-xxl/tokenizer_config.json": b"{}",
        "google/umt5-xxl/spiece.model": b"\n" * 2000, "google/umt5-xxl/tokenizer.json": b"[]",
    },
    "original with two experts": {
        "configuration.json": b"{}", "high_noise_model/config.json": b"{}", "low_noise_model/config.json": b"{}",
        "high_noise_model/diffusion_pytorch_model-00001-of-00001.safetensors": WEIGHTS,
        "low_noise_model/diffusion_pytorch_model-00001-of-00001.safetensors": WEIGHTS,
    },
    "one component": {"config.json": b"{}", "diffusion_pytorch_model.safetensors": WEIGHTS},
    "single files": {
        "split_files/diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": WEIGHTS,
        "split_files/loras/wan2.2_lightx2v.safetensors": WEIGHTS, "split_files/vae/wan_2.1_vae.safetensors": WEIGHTS,
        "wan2.1-t2v-14b-Q4_K_M.gguf": GGUF, "README.md": b"# x",
    },
    "lora of peft": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS},
    "pickles": {"pytorch_model.bin": b"\x80\x02.", "model.ckpt": b"PK\x03\x04"},
    "empty": {},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_all_its_files_documents_and_headers(tmp_path, layout):
    files = LAYOUTS[layout]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    facts = inspection.read_facts(str(tmp_path))
    assert facts.problems == () and not facts.is_file and facts.root == str(tmp_path)
    assert list(facts.files) == sorted(files)
    assert set(facts.documents) == {path for path, content in files.items() if content == b"{}"}
    assert set(facts.weights) == {path for path, content in files.items() if content in (WEIGHTS, GGUF)}
    assert all(weights.tensors["w"].shape == (2, 3) for weights in facts.weights.values())
    if layout not in ("diffusers", "modular"):
        with pytest.raises(errors.ModelIndexMissing):
            inspection.read_model(str(tmp_path))


@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf", "x.pth", "x.ckpt", "x.bin", "x.pt", "weights"])
def test_single_file_is_a_model_of_its_own(tmp_path, name):
    content = {"x.safetensors": WEIGHTS, "x.gguf": GGUF}.get(name, b"\x80\x02.")
    (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    facts = inspection.read_facts(str(tmp_path / name))
    assert facts.is_file and facts.root == str(tmp_path / name) and facts.problems == ()
    assert list(facts.files) == [name] and facts.documents == {}
    assert facts.files[name].real_path == str(tmp_path / name)
    assert list(facts.weights) == ([name] if content in (WEIGHTS, GGUF) else [])
    with pytest.raises(errors.ModelIndexMissing, match="single file"):
        inspection.read_model(str(tmp_path / name))


# ---- one flaw hides nothing else ------------------------------------------------------------------------------------


def test_every_flaw_of_a_folder_is_found_and_the_rest_is_read(model):
    (model / "vae" / "config.json").write_text("{")
    (model / "transformer" / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (model / "text_encoder" / "model.safetensors").write_bytes(b"\x80\x02.")
    (model / "tokenizer" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (model / "lost").symlink_to("nowhere")
    os.mkfifo(model / "pipe")
    facts = inspection.read_facts(str(model))
    assert {(problem.code, problem.path) for problem in facts.problems} == {
        ("json_corrupt", "vae/config.json"),
        ("lfs_pointer", "transformer/lfs.safetensors"),
        ("weights_truncated", "text_encoder/model.safetensors"),
        ("lfs_pointer", "tokenizer/tokenizer.json"),
        ("link_broken", "lost"),
        ("special_file", "pipe"),
    }
    assert "transformer" in facts.tensors and "vae" in facts.tensors and "transformer" in facts.configs


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "bin", "pth", "ckpt", "pt", "onnx", "model", "json"])
def test_git_lfs_pointer_is_known_under_any_name_of_large_files(tmp_path, suffix):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    (tmp_path / f"x.{suffix}").write_text(pointer)
    (tmp_path / "notes.txt").write_text(pointer)
    problems = inspection.read_facts(str(tmp_path)).problems
    assert [(problem.code, problem.path) for problem in problems] == [("lfs_pointer", f"x.{suffix}")]
    assert "git lfs pull" in problems[0].fix


@pytest.mark.parametrize("change", [{"size": 5}, {"size": 1}, {"inode": 1}])
def test_file_that_is_not_the_one_that_was_listed_is_not_read(tmp_path, change):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Defect) as caught:
        read_document(dataclasses.replace(file_fact(tmp_path / "config.json"), **change), Budget())
    assert caught.value.finding.code == "file_changed"


def test_file_that_became_a_fifo_is_not_waited_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    fact = file_fact(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(Defect) as caught:
        read_document(fact, Budget())
    assert caught.value.finding.code == "file_changed"


def test_file_that_is_gone_is_a_finding(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    fact = file_fact(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    with pytest.raises(Defect) as caught:
        read_document(fact, Budget())
    assert caught.value.finding.code == "file_unreadable"


# ---- what ends a strict read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["extra/model.safetensors", "lora.safetensors", "extra/config.json", "config.json", "extra/deep/x.gguf"]
)
def test_flaw_in_a_file_that_the_index_does_not_name_is_no_reason_to_refuse(model, path):
    (model / path).parent.mkdir(parents=True, exist_ok=True)
    (model / path).write_bytes(b"broken")
    assert [problem.path for problem in inspection.read_facts(str(model)).problems] == [path]
    inspection.read_model(str(model))


@pytest.mark.parametrize("path", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_flaw_in_a_file_of_the_pipeline_ends_a_strict_read(model, path):
    (model / path).write_bytes(b"\xef\xbb\xbf{}")
    with pytest.raises(errors.ModelCorrupt, match=path) as caught:
        inspection.read_model(str(model))
    assert caught.value.fixes and str(model) in caught.value.message


def test_model_that_was_not_read_to_its_end_is_refused(model):
    for number in range(10):
        (model / f"{number}").mkdir()
        (model / f"{number}" / "config.json").write_text(json.dumps({"a": [0] * 50_000}))
    assert inspection.read_facts(str(model)).problems[-1].code == "reading_limit"
    with pytest.raises(errors.ModelCorrupt, match="left unread"):
        inspection.read_model(str(model))


def test_components_are_read_before_collections_of_files(model):
    # 120 files of 1,100 tensors are more than the budget; they must not cost the transformer its header.
    header = {f"{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(1100)}
    (model / "loras").mkdir()
    (model / "loras" / "0.safetensors").write_bytes(safetensors_file(header))
    for number in range(1, 120):
        os.link(model / "loras" / "0.safetensors", model / "loras" / f"{number}.safetensors")
    facts = inspection.read_facts(str(model))
    assert [problem.code for problem in facts.problems] == ["reading_limit"]
    assert {"transformer", "vae", "text_encoder", "loras"} <= set(facts.tensors)
