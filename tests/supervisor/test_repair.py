"""Repaired copies: what is proposed, what is written, and that nothing half-written stays behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.assets.corpus.repositories import BUILDERS
from tests.supervisor.test_check import BIG, edit, snapshot
from wan_compat.policies.facts import HostFacts
from wan_compat.protocol.errors import DiskExceeded, InvalidRequest, ModelCorrupt, OutputExists, OutputNotWritable
from wan_compat.supervisor import repair
from wan_compat.supervisor.check import ModelReport, check_model
from wan_compat.supervisor.repair import write_repaired_copy

T2V = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
I2V = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
A14B = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
TI2V = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"


def model(folder: Path, name: str = T2V) -> Path:
    folder.mkdir()
    return BUILDERS[name](folder)


def checked(path: Path, host: HostFacts = BIG) -> ModelReport:
    return check_model(str(path), host=host)


def broken(folder: Path, name: str = T2V) -> ModelReport:
    path = model(folder, name)
    (path / "model_index.json").write_text('{"_class_name": "Wan')
    return checked(path)


def cut(path: Path) -> None:
    (path / "model_index.json").write_text("{")


def with_mark(path: Path) -> None:
    (path / "model_index.json").write_bytes(b"\xef\xbb\xbf" + (path / "model_index.json").read_bytes())


ROWS: list[tuple[str, Callable[[Path], object], dict[str, Any]]] = [
    (T2V, cut, {"_class_name": "WanPipeline", "transformer_2": [None, None], "boundary_ratio": None}),
    (T2V, lambda m: (m / "model_index.json").unlink(), {"vae": ["diffusers", "AutoencoderKLWan"]}),
    (T2V, with_mark, {"tokenizer": ["transformers", "T5TokenizerFast"]}),
    (T2V, lambda m: edit(m / "model_index.json", vae="AutoencoderKLWan"), {"vae": ["diffusers", "AutoencoderKLWan"]}),
    (T2V, lambda m: edit(m / "model_index.json", boundary_ratio=0.875), {"boundary_ratio": None}),
    (A14B, lambda m: edit(m / "model_index.json", boundary_ratio=None), {"boundary_ratio": 0.875}),
    (A14B, cut, {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]}),
    (TI2V, cut, {"expand_timesteps": True, "_class_name": "WanPipeline"}),
    (I2V, cut, {"_class_name": "WanImageToVideoPipeline", "image_processor": ["transformers", "CLIPImageProcessor"]}),
]


@pytest.mark.parametrize(("name", "change", "expected"), ROWS)
def test_a_broken_index_is_mended_in_a_copy(
    tmp_path: Path, name: str, change: Callable[[Path], object], expected: dict[str, Any]
) -> None:
    path = model(tmp_path / "m", name)
    sound = checked(path)
    change(path)
    before, report = snapshot(path), checked(path)
    assert report.exit_code == 4 and report.repair is not None and report.repair_diff
    write_repaired_copy(report.facts, report.repair, str(tmp_path / "copy"))
    index = json.loads((tmp_path / "copy/model_index.json").read_text())
    assert {name: index[name] for name in expected} == expected
    mended = checked(tmp_path / "copy")
    assert (mended.loadable, mended.exit_code) == (sound.loadable, sound.exit_code), mended.findings
    assert mended.architecture.variant == sound.architecture.variant
    assert snapshot(path) == before and sorted(os.listdir(tmp_path)) == ["copy", "m"]


def test_files_are_linked_and_the_index_is_new(tmp_path: Path) -> None:
    report = broken(tmp_path / "m")
    assert report.repair is not None
    write_repaired_copy(report.facts, report.repair, str(tmp_path / "copy"))
    for path in (tmp_path / "m").rglob("*"):
        twin = tmp_path / "copy" / path.relative_to(tmp_path / "m")
        if path.is_file():
            assert path.samefile(twin) is (path.name != "model_index.json")


def test_across_file_systems_files_are_copied_with_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path / "m")
    for weights in path.rglob("*.safetensors"):
        weights.unlink()
    cut(path)
    report = broken(tmp_path / "n")
    assert report.repair is not None
    facts = check_model(str(path)).facts
    monkeypatch.setattr(repair, "_link", lambda fact, place: False)
    seen: list[tuple[str, int, int]] = []
    write_repaired_copy(facts, report.repair, str(tmp_path / "copy"), lambda *step: seen.append(step))
    assert seen and seen[-1][1] == seen[-1][2] == sum(fact.size for fact in facts.files.values()) - 1
    assert (tmp_path / "copy/vae/config.json").read_bytes() == (path / "vae/config.json").read_bytes()
    assert not (tmp_path / "copy/vae/config.json").samefile(path / "vae/config.json")


def test_a_link_of_a_cache_snapshot_becomes_the_file(tmp_path: Path) -> None:
    path = model(tmp_path / "repo")
    cut(path)
    target = tmp_path / "repo/real-config"
    (path / "vae/config.json").rename(target)
    (path / "vae/config.json").symlink_to(target)
    report = checked(path)
    assert report.repair is not None
    write_repaired_copy(report.facts, report.repair, str(tmp_path / "copy"))
    copied = tmp_path / "copy/vae/config.json"
    assert copied.is_file() and not copied.is_symlink()


def test_a_taken_target_is_refused_and_an_empty_folder_is_filled(tmp_path: Path) -> None:
    report = broken(tmp_path / "m")
    assert report.repair is not None

    def write(target: Path) -> None:
        assert report.repair is not None
        write_repaired_copy(report.facts, report.repair, str(target))

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "taken")
    (tmp_path / "file").touch()
    for taken in ("taken", "link", "file"):
        with pytest.raises(OutputExists):
            write(tmp_path / taken)
    for inside in ("m", "m/copy", "m/vae/../copy"):
        with pytest.raises((InvalidRequest, OutputExists)):
            write(tmp_path / inside)
    with pytest.raises(OutputNotWritable):
        write(tmp_path / "absent/copy")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty/model_index.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link", "m", "taken"]


def test_nothing_half_written_stays_after_an_error_or_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = broken(tmp_path / "m")
    assert report.repair is not None
    failures: list[tuple[BaseException, type[BaseException]]] = [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputNotWritable),
    ]
    for error, expected in failures:

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(repair, "_link", fail)
            with pytest.raises(expected):
                write_repaired_copy(report.facts, report.repair, str(tmp_path / "copy"))
        assert os.listdir(tmp_path) == ["m"]


def test_a_full_disk_is_told_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = broken(tmp_path / "m")
    assert report.repair is not None
    monkeypatch.setattr(repair, "_link", lambda fact, place: False)
    monkeypatch.setattr(repair.shutil, "disk_usage", lambda path: repair.shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskExceeded, match="have to be copied"):
        write_repaired_copy(report.facts, report.repair, str(tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["m"]


def test_a_file_that_changed_since_the_check_is_refused(tmp_path: Path) -> None:
    report = broken(tmp_path / "m")
    assert report.repair is not None
    (tmp_path / "m/vae/config.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match=r"vae/config\.json"):
        write_repaired_copy(report.facts, report.repair, str(tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: None,
        lambda m: edit(m / "vae/config.json", z_dim=48),
        lambda m: [cut(m), shutil.rmtree(m / "tokenizer")],
        lambda m: [cut(m), edit(m / "vae/config.json", _class_name="EvilVAE")],
        lambda m: [cut(m), edit(m / "text_encoder/config.json", architectures=["Evil"], model_type="evil")],
        lambda m: [cut(m), edit(m / "vae/config.json", _class_name=["mine", "AutoencoderKLWan"])],
    ],
)
def test_what_cannot_be_known_is_not_proposed(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = model(tmp_path / "m")
    change(path)
    assert checked(path).repair is None


def test_the_diff_is_clean_and_bounded(tmp_path: Path) -> None:
    path = model(tmp_path / "m")
    (path / "model_index.json").write_text("\x1b[2J\u202e\n" * 20_000)
    text = checked(path).repair_diff
    assert text is not None and "\x1b" not in text and "\u202e" not in text and text.count("\n") <= 201
