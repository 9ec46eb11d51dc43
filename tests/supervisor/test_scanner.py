"""A whole scan: what harms is named at its file, what is ordinary is not, and what changes is never a yes."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import socket
import struct
import sys
import time
import zipfile

import numpy
import pytest

from wan_compat import Supervisor
from wan_compat.protocol import errors
from wan_compat.supervisor import scanner
from wan_compat.supervisor.hashing import HashCache
from wan_compat.supervisor.scanner import scan_model
from wan_compat.supervisor.scanning import listing
from wan_compat.supervisor.scanning.sources import Budget

EVIL = b"cos\nsystem\n(S'id'\ntR."
TENSORS = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nctorch\nFloatStorage\n\x86."
DEMO = "wan_compat/data/demo_model"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def scan(folder, tmp_path):
    def run(**options):
        return scan_model(str(folder), cache=HashCache(tmp_path / "cache"), **options)

    return run


def zipped(entries, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_zip(data_pkl=TENSORS, **more):
    return zipped({"archive/data.pkl": data_pkl, "archive/version": "3\n", "archive/data/0": os.urandom(64), **more})


def safetensors(data=b""):
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def rules(report, path=None):
    return {item.rule for item in report.findings if path is None or item.path == path}


def formats(report):
    return {file.path: file.format for file in report.files}


# -- ordinary models ---------------------------------------------------------------------------------------------------


def test_the_demo_model_is_safe(repository, tmp_path):
    cache = HashCache(tmp_path / "cache")
    report = scan_model(str(repository / DEMO), cache=cache)
    assert report.is_safe and report.risk_level == "low" and report.findings == () and report.exit_code == 0
    assert len(report.files) == 11
    hashed = scan_model(str(repository / DEMO), hash_weights=True, cache=cache)
    assert hashed.content_hash is not None and hashed.is_safe
    for file in hashed.files:
        assert file.sha256 == hashlib.sha256((repository / DEMO / file.path).read_bytes()).hexdigest()


def test_what_ordinary_repositories_bring_along_is_safe(folder, scan):
    (folder / "README.md").write_text("# Model\n\n```python\nimport torch\nfrom diffusers import WanPipeline\n```\n")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "LICENSE").write_text("Apache License\n")
    (folder / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    (folder / "spiece.model").write_bytes(b"\x0a\x0e\x0a\x05<pad>\x15\0\0\0\0\x18\3" + bytes(50))
    (folder / "model.safetensors").write_bytes(safetensors(b"abc"))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nĠ a\n")
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "x.metadata").write_text("abc\n1\n")
    numpy.save(folder / "mean.npy", numpy.zeros(3))
    numpy.savez(folder / "stats.npz", mean=numpy.zeros(3))
    report = scan()
    assert report.findings == () and report.is_safe
    assert report.content_hash is not None  # all of it is small


def test_a_hugging_face_snapshot_is_followed_into_its_blobs(tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "0123").write_text("{}")
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    cache = HashCache(tmp_path / "cache")
    report = scan_model(str(snapshot), cache=cache)
    assert report.is_safe and formats(report) == {"config.json": "json"}
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    assert scan_model(str(plain), cache=cache).content_hash == report.content_hash


def test_one_file_can_be_scanned(folder, tmp_path):
    (folder / "x.safetensors").write_bytes(EVIL)
    report = scan_model(str(folder / "x.safetensors"), cache=HashCache(tmp_path / "cache"))
    assert "pickle-dangerous-global" in rules(report, "x.safetensors")


def test_supervisor_scans_without_a_worker_and_without_torch(repository):
    with Supervisor() as supervisor:
        assert supervisor.scan(str(repository / DEMO)).is_safe
        assert not supervisor._runners


def test_nothing_is_a_typed_error(tmp_path):
    with pytest.raises(errors.ModelNotFound):
        scan_model(str(tmp_path / "nothing"))


# -- pickles in whatever they hide in ----------------------------------------------------------------------------------


def npy_with(payload):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + payload


def legacy(payload):
    pickles = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little": True}, 2)]
    return b"".join(pickles) + payload + pickle.dumps(["0"], 2) + os.urandom(40)


HIDDEN = {
    "text pickle": EVIL,
    "named weights": ("model.safetensors", EVIL),
    "protocol 4": pickle.dumps(pickle.loads, 4) + b"",
    "torch zip": torch_zip(EVIL),
    "torch zip, packed": zipped({"a/data.pkl": EVIL, "a/version": "3"}, zipfile.ZIP_DEFLATED),
    "torch's old format": legacy(b"\x80\x02" + EVIL),
    "after a harmless one": pickle.dumps([1], 2) + b"\x80\x02" + EVIL,
    "gzip": gzip.compress(EVIL),
    "bzip2": bz2.compress(EVIL),
    "xz": lzma.compress(EVIL),
    "gzip in gzip": gzip.compress(gzip.compress(EVIL)),
    "zip in zip": zipped({"a.zip": zipped({"b.bin": EVIL})}),
    "npy": npy_with(b"\x80\x02" + EVIL),
    "npz": zipped({"a.npy": npy_with(b"\x80\x02" + EVIL)}),
    "other entry of a torch zip": torch_zip(**{"archive/extra.bin": EVIL}),
    "zip behind a picture": b"\x89PNG\r\n\x1a\n" + bytes(40) + zipped({"data.pkl": EVIL}),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_pickle_that_runs_something_is_found(name, folder, scan):
    made = HIDDEN[name]
    path, data = made if isinstance(made, tuple) else ("weights.bin", made)
    (folder / path).write_bytes(data)
    report = scan()
    assert "pickle-dangerous-global" in rules(report, path)
    assert (report.is_safe, report.risk_level, report.exit_code) == (False, "high", 5)


def test_a_pickle_that_ends_early_and_goes_on_is_found(folder, scan):
    (folder / "a.bin").write_bytes(pickle.dumps([1], 2) + EVIL)
    assert "pickle-trailing" in rules(scan())
    assert not scan().is_safe


def test_a_gguf_that_works_as_a_pickle_is_found(folder, scan):
    # G takes eight bytes as a float, `0` drops it.
    (folder / "a.gguf").write_bytes(b"GGUF\3\0\0\0\x010" + EVIL)
    assert {"pickle-polyglot", "pickle-dangerous-global"} <= rules(scan())


def test_ordinary_torch_weights_are_pickles_of_medium_risk(folder, scan):
    (folder / "pytorch_model.bin").write_bytes(torch_zip())
    (folder / "old.pt").write_bytes(legacy(TENSORS))
    report = scan()
    assert rules(report) == {"pickle-present"}
    assert (report.is_safe, report.risk_level, report.exit_code) == (False, "medium", 5)
    assert formats(report) == {"pytorch_model.bin": "torch_zip", "old.pt": "torch_legacy"}


def test_scripted_and_exported_modules_are_programs(folder, scan):
    (folder / "a.pt").write_bytes(zipped({"m/data.pkl": TENSORS, "m/constants.pkl": TENSORS, "m/code/x.py": "x = 1"}))
    (folder / "b.pt2").write_bytes(zipped({"b/archive_format": "pt2", "b/models/m.json": "{}"}))
    report = scan()
    assert "format-runs-code" in rules(report, "a.pt") & rules(report, "b.pt2")
    assert report.exit_code == 5


# -- archives ----------------------------------------------------------------------------------------------------------


def test_archives_that_harm_are_found(folder, scan):
    (folder / "climbs.zip").write_bytes(zipped({"../../x": "x"}))
    (folder / "bomb.zip").write_bytes(zipped({"x": bytes(100 << 20)}, zipfile.ZIP_DEFLATED))
    (folder / "bomb.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    lying = zipped({"safe.txt": "data"}).replace(b"safe.txt", b"evil.pkl", 1)
    (folder / "lies.zip").write_bytes(lying)
    report = scan()
    assert "archive-escape" in rules(report, "climbs.zip")
    assert "archive-bomb" in rules(report, "bomb.zip") & rules(report, "bomb.gz")
    assert "archive-lies" in rules(report, "lies.zip")


def test_archives_within_archives_end(folder, scan):
    data = zipped({"x": "x"})
    for _ in range(8):
        data = zipped({"inner.zip": data})
    (folder / "deep.zip").write_bytes(data)
    assert "archive-unread" in rules(scan())


@pytest.mark.parametrize("name", ["a.7z", "a.tar", "a.zst"])
def test_archives_that_cannot_be_looked_into_are_no_yes(name, folder, scan):
    data = {"a.7z": b"7z\xbc\xaf\x27\x1c", "a.tar": bytes(257) + b"ustar\0", "a.zst": b"\x28\xb5\x2f\xfd\0"}[name]
    (folder / name).write_bytes(data + bytes(100))
    report = scan()
    assert rules(report) == {"archive-unread"} and report.exit_code == 1


@pytest.mark.parametrize("cut", [1, 10, 30, 60, 100])
def test_a_zip_that_is_cut_is_no_yes(cut, folder, scan):
    data = torch_zip()
    (folder / "a.bin").write_bytes(data[:-cut])
    assert not scan().is_safe


# -- code, configurations, other formats -------------------------------------------------------------------------------


def test_code_is_found_wherever_it_lies(folder, scan):
    (folder / "pipeline.py").write_text("import torch\n\n\ndef f(x):\n    return x\n")
    (folder / "vae").mkdir()
    (folder / "vae" / "evil.py").write_text("import os\nos.system('id')\n")
    (folder / "notes.txt").write_text("import subprocess\nsubprocess.run(['id'])\n")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.so").write_bytes(b"\x7fELF\2\1\1" + bytes(50))
    (folder / "run.sh").write_text("id\n")
    report = scan()
    assert rules(report, "pipeline.py") == {"code-present", "python-restricted"}
    assert {"code-present", "python-process"} <= rules(report, "vae/evil.py") & rules(report, "notes.txt")
    assert rules(report, ".hidden/x.so") == {"code-native"} and "file-hidden" in rules(report, ".hidden")
    assert rules(report, "run.sh") == {"code-present"}
    evil = next(item for item in report.findings if item.rule == "python-process" and item.path == "vae/evil.py")
    assert (evil.line, evil.component, evil.code) == (2, "vae", "scan_code_danger")


def test_harmless_code_is_of_medium_risk_and_refused(folder, scan):
    (folder / "pipeline.py").write_text("x = 1\n")
    report = scan()
    assert (report.is_safe, report.risk_level, report.exit_code) == (False, "medium", 5)


def test_nothing_of_the_repository_is_imported_or_run(folder, scan):
    marker = folder.parent / "marker"
    for name in ("setup.py", "conftest.py", "sitecustomize.py", "os.py", "json.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "a.bin").write_bytes(f"cbuiltins\nopen\n(V{marker}\nVw\ntR.".encode())
    assert not scan().is_safe
    assert not marker.exists() and not any(name == "setup" for name in sys.modules)


def test_configurations_and_templates_are_linted(folder, scan):
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline", "vae": ["my_vae", "MyVae"]}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"chat_template": "{{ x.__class__ }}"}')
    (folder / "config.yaml").write_text("a: !!python/name:os.system\n")
    report = scan()
    assert "config-library" in rules(report, "model_index.json")
    assert "template-dangerous" in rules(report, "tokenizer/tokenizer_config.json")
    assert "config-yaml-code" in rules(report, "config.yaml")


def test_headers_that_lie_and_pointers_are_invalid_not_refused(folder, scan):
    data = safetensors(b"abc")
    (folder / "short.safetensors").write_bytes(data[:-1])
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    report = scan()
    assert "format-corrupt" in rules(report, "short.safetensors") and "lfs-pointer" in rules(
        report, "pointer.safetensors"
    )
    assert report.exit_code == 4


def test_names_that_lie_are_found(folder, scan):
    (folder / "model.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    assert rules(scan()) == {"format-lies"}


# -- links, special files, names, limits -------------------------------------------------------------------------------


def test_links_and_special_files_are_named_and_never_opened(folder, scan):
    (folder.parent / "secret").write_text("s")
    (folder / "inside.json").write_text("{}")
    (folder / "out").symlink_to("../secret")
    (folder / "absolute").symlink_to("/etc/passwd")
    (folder / "dangling").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    (folder / "good").symlink_to("inside.json")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s"))
    started = time.monotonic()
    report = scan()
    assert time.monotonic() - started < 5
    by_path = {item.path: item.rule for item in report.findings}
    assert by_path == {
        "out": "link-escape",
        "absolute": "link-escape",
        "up": "link-escape",
        "dangling": "link-broken",
        "loop": "link-broken",
        "good": "link-inside",
        "fifo": "file-special",
        "s": "file-special",
    }
    assert {file.path for file in report.files} == {"inside.json", "good"}
    assert report.exit_code == 5


def test_names_that_are_no_text_are_shown_cleaned(folder, scan):
    name = os.fsdecode(b"weights-\xff\x1b[31m\n.json")
    (folder / name).write_text("{}")
    report = scan()
    assert rules(report) == {"file-name"} and not report.is_safe
    document = json.dumps(report.to_json(), ensure_ascii=False)
    assert "\x1b" not in document and document.encode()
    assert report.content_hash is not None


def test_files_that_cannot_be_read_are_no_yes(folder, scan):
    (folder / "a.json").write_text("{}")
    (folder / "a.json").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    report = scan()
    assert rules(report) == {"file-unreadable"} and not report.is_safe and report.content_hash is None


def test_more_than_is_looked_at_is_no_yes(folder, scan, monkeypatch):
    for number in range(20):
        (folder / f"{number}.json").write_text("{}")
    monkeypatch.setattr(listing, "MAX_FILES", 10)
    report = scan()
    assert "folder-too-many" in rules(report) and not report.is_safe and report.content_hash is None


def test_folders_deeper_than_the_limit_are_no_yes(folder, scan, monkeypatch):
    monkeypatch.setattr(listing, "MAX_DEPTH", 3)
    (folder / "a/b/c/d/e").mkdir(parents=True)
    assert "folder-too-deep" in rules(scan())


def test_bytes_beyond_the_budget_are_no_yes(folder, scan, monkeypatch):
    monkeypatch.setattr(scanner, "MAX_READ_BYTES", 10)
    for number in range(5):
        (folder / f"{number}.txt").write_text("hello world")
    assert "scan-limit" in rules(scan())


def test_findings_are_bounded_and_errors_come_first(folder, scan, monkeypatch):
    monkeypatch.setattr(scanner, "MAX_FINDINGS", 50)
    for number in range(60):
        (folder / f"{number:03}.sh").write_text("id\n")
    (folder / "zzz.bin").write_bytes(EVIL)
    report = scan()
    assert len(report.findings) < 60 and report.findings[0].rule == "pickle-dangerous-global"
    assert "scan-limit" in rules(report)


def test_thousands_of_files_are_quick(folder, scan):
    for number in range(2000):
        (folder / f"{number}.json").write_text('{"a": 1}')
    started = time.process_time()
    assert scan().is_safe
    assert time.process_time() - started < 5


# -- changes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["write", "replace", "add", "remove", "retarget", "append"])
def test_what_changes_while_it_is_scanned_is_never_a_yes(change, folder, scan, monkeypatch):
    (folder / "a.json").write_text("{}")
    (folder / "b.json").write_text("{}")
    (folder / "link.json").symlink_to("a.json")
    real = scanner.inspect_contents
    done = []

    def inspect(*arguments):
        result = real(*arguments)
        if not done:
            done.append(True)
            if change == "write":
                (folder / "a.json").write_text("[]")
            elif change == "replace":
                (folder / "new").write_text("{}")
                os.replace(folder / "new", folder / "a.json")
            elif change == "add":
                (folder / "evil.py").write_text("import os\n")
            elif change == "remove":
                (folder / "b.json").unlink()
            elif change == "retarget":
                (folder / "link.json").unlink()
                (folder / "link.json").symlink_to("b.json")
            else:
                with (folder / "a.json").open("a") as file:
                    file.write(" ")
        return result

    monkeypatch.setattr(scanner, "inspect_contents", inspect)
    report = scan()
    assert "scan-changed" in rules(report) and not report.is_safe
    assert report.content_hash is None
    assert "changed_while_scanned" in {item.code for item in report.findings}


def test_a_file_that_is_swapped_between_listing_and_opening_is_not_read(folder, scan, monkeypatch):
    (folder / "a.json").write_text("{}")
    (folder.parent / "secret").write_text("secret")
    real = scanner.list_everything

    def swap(place):
        found = real(place)
        (folder / "a.json").unlink()
        (folder / "a.json").symlink_to("../secret")
        return found

    monkeypatch.setattr(scanner, "list_everything", swap)
    report = scan()
    assert not report.is_safe and report.files[0].sha256 is None


def test_remembered_hashes_give_the_content_hash_without_reading(folder, tmp_path, monkeypatch):
    from wan_compat.supervisor import hashing

    monkeypatch.setattr(hashing, "SETTLED_NS", -1)
    (folder / "big.safetensors").write_bytes(safetensors(bytes(3 << 20)))
    cache = HashCache(tmp_path / "cache")
    assert scan_model(str(folder), cache=cache).content_hash is None
    hashed = scan_model(str(folder), hash_weights=True, cache=cache)
    again = scan_model(str(folder), cache=HashCache(tmp_path / "cache"))
    assert again.content_hash == hashed.content_hash is not None
    assert again.files[0].sha256 == hashlib.sha256((folder / "big.safetensors").read_bytes()).hexdigest()


def test_a_copy_has_the_same_content_hash_and_one_byte_more_another(folder, scan, tmp_path):
    (folder / "a.json").write_text("{}")
    first = scan().content_hash
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "a.json").chmod(0o600)
    assert scan_model(str(tmp_path / "copy"), cache=HashCache(tmp_path / "cache")).content_hash == first
    (folder / "a.json").write_text("{} ")
    assert scan().content_hash != first


def test_unpacking_is_bounded_by_one_budget(folder, scan, monkeypatch):
    monkeypatch.setattr(scanner, "Budget", functools.partial(Budget, unpacked_bytes=1 << 20))
    (folder / "a.zip").write_bytes(zipped({f"{n}.txt": b"ab" * 200_000 for n in range(8)}, zipfile.ZIP_DEFLATED))
    assert "scan-limit" in rules(scan())


def test_small_archives_cannot_ask_for_unbounded_work(folder, scan, monkeypatch):
    monkeypatch.setattr(
        scanner,
        "Budget",
        functools.partial(Budget, unpacked_bytes=30 << 20, stored_bytes=1 << 20, python_bytes=1 << 20, opcodes=200_000),
    )
    code = b"import os\n" * 20_000
    (folder / "code.zip").write_bytes(zipped({f"{n}.py": code for n in range(12)}, zipfile.ZIP_DEFLATED))
    opcodes = b"\x80\x04" + b"N0" * 200_000 + b"N."
    (folder / "pickles.zip").write_bytes(zipped({f"{n}.pkl": opcodes for n in range(20)}, zipfile.ZIP_DEFLATED))
    # A thousand entries that are the same megabyte.
    raw = zipped({"0.txt": b"x" * (1 << 20)})
    end = raw.rindex(b"PK\5\6")
    start = raw.index(b"PK\1\2", end - 200)
    many = raw[start:end] * 1000
    record = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(many), start, 0)
    (folder / "same.zip").write_bytes(raw[:start] + many + record)
    started = time.process_time()
    report = scan()
    assert time.process_time() - started < 10
    assert "scan-limit" in rules(report, "code.zip") & rules(report, "same.zip")
    assert "pickle-limit" in rules(report, "pickles.zip")
    assert "archive-bomb" in rules(report, "same.zip")


def test_compressed_files_that_are_cut_or_go_on_are_no_yes(folder, scan):
    whole = gzip.compress(os.urandom(5000))
    (folder / "cut.gz").write_bytes(whole[:-2000])
    (folder / "more.gz").write_bytes(whole + gzip.compress(EVIL))
    report = scan()
    assert "scan-limit" in rules(report, "cut.gz") & rules(report, "more.gz")
