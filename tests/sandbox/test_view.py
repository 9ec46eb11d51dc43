"""The worker's file system: what it holds, what cannot be done to it, and which files are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.harness import ROOT, full_layers, names, run_program
from wan_compat.sandbox import view
from wan_compat.sandbox.spec import Bind, ConfinementSpec, FileIdentity, Identity, Layer, Limits, View

FULL = names(full_layers())


def scenario(name: str, **order: Any) -> Any:
    return run_program("sandbox_launch", {"scenario": name, "layers": FULL, **order})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that others may enter, with an admitted file, a secret beside it, and a link out."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and str(parent) not in ("/", "/tmp"):
            parent.chmod(0o755)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("weights")
    (folder / "secret").write_text("secret")
    (folder / "passwd").symlink_to("/etc/passwd")
    return folder


def test_view_holds_what_was_named_and_nothing_else(model: Path) -> None:
    # Without Landlock, so that the view alone is what is seen (Landlock refuses even to list the root).
    layers = names(full_layers() - {Layer.LANDLOCK})
    binds = [{"source": str(model / "weights"), "target": "/model/weights"}]
    found = scenario("see_files", layers=layers, binds=binds, read=["/model/weights"])["answer"]
    assert found.pop("/model/weights") == "weights"
    assert sorted(found) == [
        "/dev", "/dev/null", "/dev/urandom", "/etc", "/etc/note", "/model", "/proc", "/proc/cpuinfo", "/scratch", "/tmp",
    ]  # fmt: skip


def test_only_scratch_can_be_written_and_tmp_is_scratch(model: Path) -> None:
    layers = names(full_layers() - {Layer.LANDLOCK})
    places = {
        "/x": "E30", "/etc/x": "E30", "/etc/note": "E30", "/proc/cpuinfo": "E30", "/model/weights": "E30",
        "/model/x": "E30", "/folder/x": "E30", "/folder/weights": "E30", "/dev/x": "E30",
        "/scratch/x": "written", "/tmp/y": "written",
    }  # fmt: skip
    binds = [
        {"source": str(model / "weights"), "target": "/model/weights"},
        {"source": str(model), "target": "/folder", "executable": True},
    ]
    found = scenario("see_files", layers=layers, binds=binds, read=[], write=list(places))["answer"]
    got = {path: "E30" if ROOT is False and found[path] == "E13" else found[path] for path in places}
    # Root's worker is not the owner of those files, so that ordinary permissions may answer first.
    assert {path: answer.replace("E13", "E30") for path, answer in got.items()} == places


def test_only_executable_binds_can_be_mapped_executable(model: Path) -> None:
    binds = [
        {"source": str(model / "weights"), "target": "/model/weights"},
        {"source": str(model / "weights"), "target": "/lib/weights", "executable": True},
    ]
    found = scenario("see_files", binds=binds, read=[], map=["/model/weights", "/lib/weights"])["answer"]
    assert (found["/model/weights"], found["/lib/weights"]) == ("E1", "mapped")


def test_links_in_a_bound_folder_lead_nowhere(model: Path) -> None:
    binds = [{"source": str(model), "target": "/model"}]
    found = scenario("see_files", binds=binds, read=["/model/passwd", "/model/../etc/passwd"])["answer"]
    assert found["/model/passwd"] == found["/model/../etc/passwd"] == "E2"


def test_model_below_tmp_is_not_hidden_by_the_new_root(tmp_path: Path, model: Path) -> None:
    # pytest's folders lie below /tmp, on which the new root is put together: what matters is where the bind came from.
    binds = [{"source": str(model / "weights"), "target": str(model / "weights")}]
    path = str(model / "weights")
    assert scenario("see_files", binds=binds, read=[path])["answer"][path] == "weights"


@pytest.mark.parametrize("changed", ["device", "inode", "size", "mtime_ns"])
def test_file_other_than_the_admitted_one_is_refused(model: Path, changed: str) -> None:
    path = model / "weights"
    identity = identity_of(path)
    identity[changed] += 1
    found = scenario("refuse_bind", binds=[{"source": str(path), "target": "/model/w", "identity": identity}])
    assert f"{path} is not the file that was admitted" in found["message"]
    assert found["details"]["layer"] == "view"
    assert found["left"] == {}


def test_file_replaced_after_admission_is_refused(model: Path) -> None:
    path = model / "weights"
    identity = identity_of(path)
    (model / "new").write_text("weights")
    os.replace(model / "new", path)
    found = scenario("refuse_bind", binds=[{"source": str(path), "target": "/model/w", "identity": identity}])
    assert "is not the file that was admitted" in found["message"]


def test_missing_source_is_named(model: Path) -> None:
    found = scenario("refuse_bind", binds=[{"source": str(model / "gone"), "target": "/model/w"}])
    assert str(model / "gone") in found["message"]
    assert found["details"] == {"layer": "view", "errno": 2}
    assert found["left"] == {}


@pytest.mark.parametrize("target", ["/../etc", "/", "relative", "/a/../../b"])
def test_target_outside_the_view_is_refused(model: Path, target: str) -> None:
    found = scenario("refuse_bind", binds=[{"source": str(model / "weights"), "target": target}])
    assert found["details"]["layer"] == "view"
    assert found["left"] == {}


def test_two_things_at_one_target_are_refused(model: Path) -> None:
    bind = {"source": str(model / "weights"), "target": "/model/w"}
    assert "same target" in scenario("refuse_bind", binds=[bind, dict(bind)])["message"]


def test_private_file_is_readable_inside_and_untouched_outside(model: Path) -> None:
    path = model / "weights"
    path.chmod(0o600)
    before = path.stat()
    found = scenario("read_admitted", paths=[str(path)])
    assert found["answer"] == ["weights"]
    assert path.stat() == before
    assert stat.S_IMODE(before.st_mode) == 0o600


@pytest.mark.skipif(not ROOT, reason="only root can give files to others")
def test_private_files_of_several_owners_are_readable_inside(model: Path) -> None:
    paths = []
    for index, owner in enumerate((0, 1234, 5678)):
        path = model / f"part{index}"
        path.write_text(f"part {owner}")
        path.chmod(0o400)
        os.chown(path, owner, owner)
        paths.append(str(path))
    for layers in (FULL, sorted([*FULL, "user_namespace"])):
        found = scenario("read_admitted", paths=paths, layers=layers)
        assert found["answer"] == ["part 0", "part 1234", "part 5678"]


@pytest.mark.skipif(ROOT, reason="root's admitted files are id-mapped instead")
def test_unreadable_file_is_named_with_its_remedy(model: Path) -> None:
    path = model / "weights"
    path.chmod(0)
    found = scenario("refuse_bind", binds=[{"source": str(path), "target": "/model/w", "identity": identity_of(path)}])
    assert str(path) in found["message"] and found["hint"]


@pytest.mark.skipif(not ROOT, reason="root alone runs workers as another user")
def test_file_that_not_even_its_owner_may_read_is_named(model: Path) -> None:
    path = model / "weights"
    path.chmod(0)
    found = scenario("refuse_bind", binds=[{"source": str(path), "target": "/model/w", "identity": identity_of(path)}])
    assert "not even its owner" in found["message"]
    assert found["left"] == {}


@pytest.mark.skipif(not ROOT, reason="root alone runs workers as another user")
def test_folder_that_the_worker_cannot_read_is_named(model: Path) -> None:
    model.chmod(0o700)
    found = scenario("refuse_bind", binds=[{"source": str(model), "target": "/packages"}])
    assert str(model) in found["message"]
    assert found["details"]["layer"] == "view"


def test_access_rules_follow_the_view_where_there_is_one() -> None:
    spec = ConfinementSpec(
        layers=frozenset({Layer.VIEW, Layer.LANDLOCK}),
        view=View(binds=(Bind("/source", "/target"),), control_dir="/run/c"),
        limits=Limits(1),
        identity=Identity(1, 1),
    )
    assert {path for path, _ in view.access_rules(spec)} == {
        "/target", "/dev/null", "/dev/urandom", "/scratch", "/ctl",
    }  # fmt: skip


def test_access_rules_follow_the_host_where_there_is_no_view() -> None:
    spec = ConfinementSpec(
        layers=frozenset({Layer.LANDLOCK}),
        view=View(binds=(Bind("/source", "/target"),), host_scratch_dir="/tmp/s"),
        limits=Limits(1),
    )
    assert {path for path, _ in view.access_rules(spec)} == {"/source", "/dev/null", "/dev/urandom", "/tmp/s"}


def identity_of(path: Path) -> dict[str, int]:
    found = path.stat()
    identity = FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return {"device": identity.device, "inode": identity.inode, "size": identity.size, "mtime_ns": identity.mtime_ns}
