"""Isolated environments: whole or absent, used only as they were made, remembered by model."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from wan_compat.policies.dependencies import Feature
from wan_compat.policies.dependency_lock import LockedWheel
from wan_compat.policies.dependency_plan import Action, InstallPlan, PlanStep
from wan_compat.protocol.errors import DiskExceeded, EnvironmentLacks, StateCorrupt, StateUnsafe
from wan_compat.supervisor.environments import Environments

WHEEL = LockedWheel(filename="gguf-9.0-py3-none-any.whl", sha256="0" * 64, bytes=100)


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "data" / "environments", state=tmp_path / "state", interpreter="cp311-x86_64")


def plan(interpreter: str = "cp311-x86_64") -> InstallPlan:
    step = PlanStep("gguf", Action.INSTALL, None, "", "9.0", ("you",), "", WHEEL)
    return InstallPlan((step,), interpreter)


def fill(site: Path, scratch: Path) -> None:
    (site / "gguf").mkdir()
    (site / "gguf" / "__init__.py").write_text("VALUE = 1\n")
    (site / "gguf" / "loose.py").write_text("")
    os.chmod(site / "gguf" / "loose.py", 0o666)  # whatever the umask of who made it
    (scratch / "wheel").write_text("x")


def parts(environments: Environments) -> list[str]:
    return sorted(path.name for path in environments.folder.iterdir() if path.is_dir())


def test_an_environment_is_made_closed_and_looked_at(environments):
    made = environments.build(plan(), fill)
    assert made == environments.get(made.id) and made.packages == (("gguf", "9.0"),)
    root = Path(made.site).parent
    assert sorted(path.name for path in root.iterdir()) == ["manifest.json", "site"]
    assert (root.stat().st_mode & 0o777, root.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert (Path(made.site) / "gguf" / "loose.py").stat().st_mode & 0o777 == 0o644
    assert parts(environments) == [made.id]


def test_an_equal_plan_finds_what_is_there(environments):
    first = environments.build(plan(), fill)
    assert environments.build(plan(), lambda site, scratch: pytest.fail("filled again")) == first


@pytest.mark.parametrize("error", [EnvironmentLacks("no"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_whatever_goes_wrong_nothing_is_left(environments, error):
    def breaks(site: Path, scratch: Path) -> None:
        fill(site, scratch)
        raise error

    with pytest.raises(type(error)):
        environments.build(plan(), breaks)
    assert parts(environments) == []


def test_a_full_disk_is_told_as_one_and_leaves_nothing(environments):
    def breaks(site: Path, scratch: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskExceeded) as caught:
        environments.build(plan(), breaks)
    assert caught.value.exit_code == 6 and parts(environments) == []


def test_a_link_among_what_was_unpacked_is_refused(environments):
    def breaks(site: Path, scratch: Path) -> None:
        (site / "escape").symlink_to("/etc")

    with pytest.raises(StateCorrupt):
        environments.build(plan(), breaks)
    assert parts(environments) == []


def test_what_a_killed_installation_left_is_removed_by_the_next(environments):
    left = environments.folder / f".{plan().fingerprint}.part" / "site"
    left.mkdir(parents=True)
    (left / "half.py").write_text("")
    made = environments.build(plan(), fill)
    assert parts(environments) == [made.id] and not (Path(made.site) / "half.py").exists()


def test_two_installations_at_once_make_one(environments):
    filled, results = [], []

    def slowly(site: Path, scratch: Path) -> None:
        filled.append(1)
        time.sleep(0.2)
        fill(site, scratch)

    threads = [threading.Thread(target=lambda: results.append(environments.build(plan(), slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(filled) == 1 and len(results) == 3 and len(set(results)) == 1


def remove_a_file(site: Path) -> None:
    (site / "gguf" / "__init__.py").unlink()


def add_a_file(site: Path) -> None:
    (site / "torch.py").write_text("evil = True\n")


def change_a_size(site: Path) -> None:
    (site / "gguf" / "__init__.py").write_text("VALUE = 1000\n")


def replace_by_a_link(site: Path) -> None:
    (site / "gguf" / "loose.py").unlink()
    (site / "gguf" / "loose.py").symlink_to("/etc/passwd")


def make_a_fifo(site: Path) -> None:
    os.mkfifo(site / "gguf" / "fifo.py")


def open_a_file_to_others(site: Path) -> None:
    os.chmod(site / "gguf" / "__init__.py", 0o664)


def open_a_folder_to_others(site: Path) -> None:
    os.chmod(site / "gguf", 0o777)


def open_the_root_to_others(site: Path) -> None:
    os.chmod(site.parent, 0o777)


def break_the_manifest(site: Path) -> None:
    (site.parent / "manifest.json").write_text("{")


def lose_the_manifest(site: Path) -> None:
    (site.parent / "manifest.json").unlink()


def link_the_site(site: Path) -> None:
    site.rename(site.parent / "real")
    site.symlink_to("real")


def nest_deeply(site: Path) -> None:
    (site / "/".join("d" * 60)).mkdir(parents=True)


DAMAGE = {
    remove_a_file: (StateCorrupt, "is missing"),
    add_a_file: (StateCorrupt, "torch.py was not installed"),
    change_a_size: (StateCorrupt, "has another size"),
    replace_by_a_link: (StateCorrupt, "a link"),
    make_a_fifo: (StateCorrupt, "no file"),
    open_a_file_to_others: (StateUnsafe, "by others"),
    open_a_folder_to_others: (StateUnsafe, "by others"),
    open_the_root_to_others: (StateUnsafe, "by others"),
    break_the_manifest: (StateCorrupt, "malformed"),
    lose_the_manifest: (StateCorrupt, "has no manifest"),
    link_the_site: (StateCorrupt, "a link"),
    nest_deeply: (StateCorrupt, "too deeply"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_environment_is_not_used_and_is_made_anew(environments, damage):
    made = environments.build(plan(), fill)
    environments.assign("org/name", made.id)
    damage(Path(made.site))
    kind, words = DAMAGE[damage]
    with pytest.raises(kind, match=words) as caught:
        environments.of_model("org/name")
    assert caught.value.exit_code == 3 and caught.value.fixes
    if damage is open_the_root_to_others:
        os.chmod(Path(made.site).parent, 0o700)
    assert environments.build(plan(), fill) == made == environments.of_model("org/name")


def test_somebody_elses_environment_is_not_used(environments, monkeypatch):
    made = environments.build(plan(), fill)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(StateUnsafe, match="belongs to user"):
        environments.get(made.id)


def test_an_environment_of_another_python_is_not_used(environments, tmp_path):
    made = environments.build(plan(), fill)
    other = Environments(environments.folder, state=tmp_path / "state", interpreter="cp312-x86_64")
    with pytest.raises(StateCorrupt, match="made for cp311-x86_64, this is cp312-x86_64"):
        other.get(made.id)


def test_one_that_was_removed_is_an_error_and_not_the_usual_packages(environments):
    environments.assign("org/name", "0" * 32)
    with pytest.raises(StateCorrupt, match="not there"):
        environments.of_model("org/name")


def test_models_are_remembered_and_forgotten(environments):
    assert environments.of_model("org/name") is None
    made = environments.build(plan(), fill)
    environments.assign("org/name", made.id, (Feature.GGUF,))
    environments.assign("/path/to/model", made.id)
    assert environments.of_model("org/name") == made
    assert environments.assignment("org/name").features == (Feature.GGUF,)
    environments.assign("org/name", None)
    environments.assign("org/name", None)
    assert environments.of_model("org/name") is None and environments.of_model("/path/to/model") == made


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b'{"models": {"a": {"environment": "../../etc"}}}', b'{"models": {}, "more": 1}', b"x" * (5 << 20)],
)
def test_a_damaged_record_is_an_error_and_is_not_written_over(environments, tmp_path, raw):
    environments.assign("org/name", "0" * 32)
    record = tmp_path / "state" / "environments.json"
    record.write_bytes(raw)
    for act in (lambda: environments.of_model("org/name"), lambda: environments.assign("org/name", "1" * 32)):
        with pytest.raises(StateCorrupt):
            act()
    assert record.read_bytes() == raw


def test_a_record_that_others_could_write_is_not_believed(environments, tmp_path):
    environments.assign("org/name", "0" * 32)
    os.chmod(tmp_path / "state" / "environments.json", 0o666)
    with pytest.raises(StateUnsafe):
        environments.of_model("org/name")
