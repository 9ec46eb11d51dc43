"""Versions, classes and arguments are read from installations without importing them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.assets.fake_packages import write_diffusers, write_metadata, write_transformers
from wan_compat.policies.python_source import MAX_SOURCE_BYTES
from wan_compat.policies.variants import VARIANTS
from wan_compat.supervisor.installed import InstalledPackage, find_package, find_version

PIPELINES = sorted(
    {name for variant in VARIANTS.values() for name in (variant.pipeline_class, *variant.also_loads_as) if name}
)


def installed(name: str, site_packages: Path | None = None) -> InstalledPackage:
    package = find_package(name, None if site_packages is None else str(site_packages))
    assert package is not None
    return package


# -- what this environment has ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_of_the_vocabulary_is_found_with_its_arguments(name: str) -> None:
    signature = installed("diffusers").signature(name)
    assert signature is not None and signature.call is not None
    assert "prompt" in signature.call.names
    assert Path(signature.path).is_file()


def test_what_is_read_is_what_python_sees() -> None:
    """Against the truth: inspect.signature of the imported classes, in a process of their own."""
    names = ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline")
    code = (
        "import diffusers, inspect, json\n"
        "def of(f): return [[n, p.default is not p.empty] for n, p in inspect.signature(f).parameters.items() if n != 'self']\n"
        f"print(json.dumps({{n: [of(getattr(diffusers, n).__init__), of(getattr(diffusers, n).__call__)] for n in {names}}}))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=110, check=True
    )
    truth = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        signature = installed("diffusers").signature(name)
        assert signature is not None
        for read, true in zip((signature.init, signature.call), truth[name], strict=True):
            assert read is not None
            assert sorted([argument, argument in read.optional] for argument in read.names) == sorted(true)


@pytest.mark.parametrize(
    "name",
    ["UMT5EncoderModel", "T5TokenizerFast", "CLIPVisionModelWithProjection", "CLIPImageProcessor", "AutoTokenizer"],
)
def test_classes_of_transformers_are_found(name: str) -> None:
    assert installed("transformers").has_class(name)


def test_a_modular_pipeline_takes_what_its_blocks_document() -> None:
    signature = installed("diffusers").signature("WanAnimate2ModularPipeline")
    assert signature is not None and signature.is_modular and signature.call is not None
    assert {"image", "driving_video"} <= set(signature.call.required)


def test_first_answer_is_cheap_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time\n"
        "from wan_compat.supervisor.installed import find_package\n"
        "start = time.process_time()\n"
        "assert find_package('diffusers').signature('WanPipeline').call\n"
        "seconds = time.process_time() - start\n"
        "heavy = {name.partition('.')[0] for name in sys.modules} & {'torch', 'diffusers', 'transformers', 'numpy'}\n"
        "assert not heavy, heavy\n"
        "print(seconds)"
    )
    best = min(
        float(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
        )
        for _ in range(3)
    )
    assert best < 0.06


# -- other installations -------------------------------------------------------------------------------------------------


def test_another_interpreters_packages_are_read_from_their_folder(tmp_path: Path) -> None:
    write_diffusers(tmp_path, "0.33.1")
    package = installed("diffusers", tmp_path)
    assert package.version == "0.33.1"
    signature = package.signature("WanPipeline")
    assert signature is not None and signature.call is not None and signature.init is not None
    assert "guidance_scale_2" not in signature.call.names
    assert signature.init.required == ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    assert not package.has_class("WanVACEPipeline")
    assert package.source_of("AutoencoderKLWan") == str(
        tmp_path / "diffusers" / "models" / "autoencoders" / "autoencoder_kl_wan.py"
    )


def test_a_dummy_object_is_no_class(tmp_path: Path) -> None:
    write_diffusers(tmp_path, "0.35.0")
    assert not installed("diffusers", tmp_path).has_class("OnlyADummy")


def test_what_is_not_installed_is_none(tmp_path: Path) -> None:
    assert find_package("diffusers", str(tmp_path)) is None
    assert find_package("diffusers", str(tmp_path / "absent")) is None
    assert find_version("diffusers", str(tmp_path)) is None
    assert find_package("no_such_package_anywhere") is None


def test_a_folder_without_init_is_not_a_package(tmp_path: Path) -> None:
    (tmp_path / "diffusers").mkdir()
    assert find_package("diffusers", str(tmp_path)) is None


def test_without_metadata_the_source_tells_the_version(tmp_path: Path) -> None:
    write_diffusers(tmp_path, "0.35.0", metadata=False)
    assert installed("diffusers", tmp_path).version == "0.35.0"


def test_an_editable_install_is_found_by_its_record(tmp_path: Path) -> None:
    site, project = tmp_path / "site", tmp_path / "with space"
    write_diffusers(project / "src", "0.35.0", metadata=False)
    folder = write_metadata(site, "diffusers", "0.36.0.dev0")
    record = {"url": f"file://{str(project).replace(' ', '%20')}", "dir_info": {"editable": True}}
    (folder / "direct_url.json").write_text(json.dumps(record))
    package = installed("diffusers", site)
    assert package.version == "0.36.0.dev0"
    assert package.has_class("WanPipeline")


@pytest.mark.parametrize("record", ["{", "[]", '{"url": 1}', '{"url": "https://x/y", "dir_info": {"editable": true}}'])
def test_a_broken_record_of_an_install_is_no_package(tmp_path: Path, record: str) -> None:
    (write_metadata(tmp_path, "diffusers", "0.36.0") / "direct_url.json").write_text(record)
    assert find_package("diffusers", str(tmp_path)) is None


def test_path_files_are_followed_and_their_code_is_not_run(tmp_path: Path) -> None:
    site, checkout = tmp_path / "site", tmp_path / "checkout"
    write_diffusers(checkout, "0.35.0")
    site.mkdir()
    (site / "a.pth").write_text(f"import sys; raise SystemExit\n# remark\n{checkout}\n")
    assert installed("diffusers", site).has_class("WanPipeline")


def test_the_working_folder_cannot_pose_as_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_diffusers(tmp_path, "0.33.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed("diffusers").version != "0.33.1"


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    write_diffusers(tmp_path, "0.33.1")
    assert not installed("diffusers", tmp_path).has_class("WanVACEPipeline")
    for old in tmp_path.iterdir():
        shutil.rmtree(old)
    write_diffusers(tmp_path, "0.35.0")
    assert installed("diffusers", tmp_path).has_class("WanVACEPipeline")


def test_transformers_without_a_table_is_searched_by_folder_name(tmp_path: Path) -> None:
    write_transformers(tmp_path)
    package = installed("transformers", tmp_path)
    assert package.has_class("Cache")
    assert package.has_class("UMT5EncoderModel")
    assert package.has_class("T5TokenizerFast"), "an alias of T5Tokenizer"
    assert package.has_class("OtherModel"), "its folder is named by the Auto classes only"
    assert not package.has_class("UMT5Nothing")


# -- broken and hostile installations --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\0", b"def", b"#" * (MAX_SOURCE_BYTES + 1)], ids=["binary", "syntax", "large"]
)
@pytest.mark.parametrize("file", ["__init__.py", "pipelines/__init__.py", "pipelines/wan/pipeline_wan.py"])
def test_a_broken_file_gives_nothing(tmp_path: Path, file: str, content: bytes) -> None:
    root = write_diffusers(tmp_path, "0.35.0")
    (root / file).write_bytes(content)
    assert installed("diffusers", tmp_path).signature("WanPipeline") is None


@pytest.mark.parametrize("module", ["../../../etc", "a/b", "wan..x", "", "."])
def test_a_table_cannot_lead_out_of_the_package(tmp_path: Path, module: str) -> None:
    root = write_diffusers(tmp_path, "0.35.0")
    (root / "__init__.py").write_text(f"_import_structure = {{{module!r}: ['WanPipeline']}}\n")
    assert installed("diffusers", tmp_path).source_of("WanPipeline") is None


def test_tables_that_name_each_other_end(tmp_path: Path) -> None:
    root = write_diffusers(tmp_path, "0.35.0")
    (root / "loop").mkdir()
    (root / "loop" / "__init__.py").write_text("_import_structure = {'loop': ['X']}\n")
    (root / "loop" / "loop").symlink_to(root / "loop")
    (root / "__init__.py").write_text("_import_structure = {'loop': ['X']}\n")
    assert installed("diffusers", tmp_path).source_of("X") is None


@pytest.mark.parametrize("name", ["", "a b", "X)", "../X", "X" * 300, "Ünïcode"])
def test_what_is_no_class_name_is_no_class(name: str) -> None:
    assert installed("diffusers").source_of(name) is None
    assert installed("diffusers").signature(name) is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_fifo_or_folder_in_place_of_a_file_is_passed_by(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = write_diffusers(tmp_path, "0.35.0")
    (root / "pipelines" / "wan" / "pipeline_wan.py").unlink()
    make(root / "pipelines" / "wan" / "pipeline_wan.py")
    assert installed("diffusers", tmp_path).signature("WanPipeline") is None
