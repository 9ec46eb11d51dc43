"""Installing for a model: real pip, tiny wheels in a folder; and what must not happen when a step fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.assets.tiny_wheels import TinyPackage, lock_of, without_features, write_sdist, write_wheel
from wan_compat.policies.dependencies import Feature
from wan_compat.policies.dependency_lock import Lock
from wan_compat.protocol.errors import (
    DiskExceeded,
    EnvironmentLacks,
    FetchFailed,
    HashMismatch,
    ModelNotCompatible,
    ModelNotFound,
    VersionConflict,
    WanCompatError,
)
from wan_compat.supervisor import dependency_manager, wheels
from wan_compat.supervisor.audit_log import AuditLog
from wan_compat.supervisor.dependency_manager import DependencyManager, InstallStep
from wan_compat.supervisor.environments import Environments
from wan_compat.supervisor.installed import find_distributions

DEMO = Path(__file__).resolve().parents[2] / "wan_compat" / "data" / "demo_model"
NINJA = TinyPackage("ninja", "9.1")
GGUF = TinyPackage("gguf", "9.0", code="import ninja\nVALUE = ninja.VALUE + 1\n", requires=("ninja>=9", "numpy"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(dependency_manager, "find_distributions", without_features(find_distributions))


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    return tmp_path / "wheelhouse"


@pytest.fixture
def lock(wheelhouse: Path) -> Lock:
    return lock_of(wheelhouse, GGUF, NINJA)


@pytest.fixture
def manager(wheelhouse: Path, lock: Lock) -> DependencyManager:
    return DependencyManager(lock=lock, index=str(wheelhouse))


def made(manager: DependencyManager) -> list[str]:
    folder = manager.environments.folder
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def installations() -> list[dict[str, object]]:
    return [entry.fields for entry in AuditLog().entries() if entry.event == "installation"]


def install(manager: DependencyManager, seen: list[InstallStep] | None = None):
    return manager.carry_out(manager.plan(str(DEMO), [Feature.GGUF]), (seen if seen is not None else []).append)


# ---- what works ----------------------------------------------------------------------------------------------------


def test_packages_come_into_an_environment_of_their_own(manager, monkeypatch, tmp_path):
    # None of this may have a say: neither the user's options for pip nor his configuration.
    for name, value in {
        "PIP_TARGET": str(tmp_path / "elsewhere"),
        "PIP_NO_BINARY": ":all:",
        "PIP_INDEX_URL": "http://x",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    (tmp_path / ".config" / "pip" / "pip.conf").write_text("[global]\ntarget = /nonexistent\nno-binary = :all:\n")
    seen: list[InstallStep] = []
    environment = install(manager, seen)
    assert environment.packages == (("gguf", "9.0"), ("ninja", "9.1"))
    assert [(step.what, step.subject, step.number, step.total) for step in seen] == [
        ("fetch", "gguf 9.0", 1, 3), ("fetch", "ninja 9.1", 2, 3), ("unpack", "2 packages", 3, 3)]  # fmt: skip
    code = f"import sys; sys.path.insert(0, {environment.site!r}); import gguf; print(gguf.VALUE, gguf.__file__)"
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout.split() == ["2", f"{environment.site}/gguf/__init__.py"]
    assert (
        subprocess.run(
            [sys.executable, "-I", "-c", "import gguf; gguf.VALUE"], stderr=subprocess.DEVNULL, timeout=30
        ).returncode
        != 0
    )
    assert not (tmp_path / "elsewhere").exists()
    assert [fields["outcome"] for fields in installations()] == ["installed"]
    # A second model with the same needs finds it, and so does the first one: no index is needed any more.
    shutil.rmtree(manager.index)
    assert manager.plan(str(DEMO)).exists, "what was asked for is remembered"
    assert install(manager) == environment == manager.environments.of_model(os.path.realpath(DEMO))
    assert [fields["outcome"] for fields in installations()] == ["installed", "reused"]


def test_install_dependencies_takes_names_of_the_list_and_no_other(manager):
    result = manager.install_dependencies(["gguf", "wan-pipeline", "requests"])
    assert not result.success and result.failed == ["gguf", "wan-pipeline", "requests"] and made(manager) == []
    assert "wan-pipeline" in result.log[0] and "requests" in result.log[0] and "pip install" not in " ".join(result.log)
    result = manager.install_dependencies(["gguf>=9", "ftfy"])
    assert result.success and result.installed == ["gguf 9.0", "ninja 9.1"] and not result.failed
    assert any(item.startswith("ftfy ") for item in result.skipped)
    assert result.log[0].startswith("fetch gguf 9.0") and result.log[-1].startswith("environment ")


def test_nothing_is_made_where_nothing_is_missing(manager):
    found = manager.plan(str(DEMO))
    assert found.plan.changes == () and manager.carry_out(found) is None
    assert made(manager) == [] and installations() == []


# ---- what must leave nothing ---------------------------------------------------------------------------------------


def refuses(manager: DependencyManager, kind: type[WanCompatError], words: str) -> WanCompatError:
    with pytest.raises(kind, match=words) as caught:
        install(manager)
    assert made(manager) == [] and manager.environments.assignment(os.path.realpath(DEMO)) is None
    if kind is not VersionConflict:
        assert [(fields["outcome"], fields["code"]) for fields in installations()] == [("failed", caught.value.code)]
    assert caught.value.fixes
    return caught.value


def test_other_bytes_under_the_same_name_are_refused_and_recorded(manager, wheelhouse):
    write_wheel(wheelhouse, TinyPackage("ninja", "9.1", code="import os; os.system('evil')\n"))
    error = refuses(manager, HashMismatch, "ninja-9.1-py3-none-any.whl")
    assert error.exit_code == 5 and error.details["expected"] != error.details["found"]


def test_what_pip_brings_is_hashed_again(manager, monkeypatch):
    """A pip that does not check must not be enough."""
    monkeypatch.setattr(wheels, "_PIP", _program("open('gguf-9.0-py3-none-any.whl', 'wb').write(b'other bytes')"))
    refuses(manager, HashMismatch, "gguf-9.0-py3-none-any.whl")


def test_a_missing_wheel_is_named(manager, wheelhouse):
    (wheelhouse / "ninja-9.1-py3-none-any.whl").unlink()
    assert refuses(manager, EnvironmentLacks, "has no ninja-9.1-py3-none-any.whl").exit_code == 3


def test_a_source_package_is_not_built(manager, wheelhouse, tmp_path):
    (wheelhouse / "gguf-9.0-py3-none-any.whl").unlink()
    write_sdist(wheelhouse, GGUF, tmp_path / "built")
    refuses(manager, EnvironmentLacks, "has no gguf-9.0-py3-none-any.whl")
    assert not (tmp_path / "built").exists()


def test_a_machine_without_network_is_told_what_to_do(lock):
    manager = DependencyManager(lock=lock, index="https://127.0.0.1:9/simple")
    error = refuses(manager, FetchFailed, r"cannot be reached: .*Connection refused")
    assert error.exit_code == 3 and any("WAN_COMPAT_PACKAGE_INDEX" in fix for fix in error.fixes)


def test_a_version_conflict_starts_nothing(wheelhouse, monkeypatch):
    monkeypatch.setattr(wheels, "_run_pip", lambda *_: pytest.fail("pip was started"))
    lock = lock_of(wheelhouse, TinyPackage("gguf", "9.0", requires=("numpy>=99",)), TinyPackage("numpy", "2.0"))
    manager = DependencyManager(lock=lock, index=str(wheelhouse))
    error = refuses(manager, VersionConflict, r"gguf 9.0 wants numpy>=99")
    assert error.exit_code == 3 and len(error.details["conflicts"]) == 1


def _program(code: str) -> str:
    """Return what stands in for pip: real up to where it misbehaves."""
    return f"import sys, os, signal\nverb = sys.argv[1]\n{code}"


_REAL = "import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
KILLS = {
    "at the first wheel": "os.kill(os.getpid(), signal.SIGKILL)",
    "at the second wheel": f"os.path.exists('gguf.txt') and os.path.exists('ninja.txt') and os.kill(os.getpid(), 9)\n{_REAL}",
    "while unpacking": f"verb == 'install' and (os.makedirs(sys.argv[sys.argv.index('--target') + 1] + '/gguf/half'), os.kill(os.getpid(), 9))\n{_REAL}",
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_pip_leaves_nothing(manager, monkeypatch, moment):
    monkeypatch.setattr(wheels, "_PIP", _program(KILLS[moment]))
    refuses(manager, EnvironmentLacks, "pip was killed by signal 9")


def test_a_pip_that_fails_is_quoted_clean_and_bounded(manager, monkeypatch):
    monkeypatch.setattr(wheels, "_PIP", _program("print('x' * 500_000); print('ERROR: \\x1b[31mred'); sys.exit(2)"))
    error = refuses(manager, EnvironmentLacks, "pip ended with 2")
    assert "\x1b" not in error.message and "red" in error.message and len(error.message) < 4001


def test_a_pip_that_hangs_is_ended_with_its_children(manager, monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "FETCH_TIMEOUT_S", 1.0)
    child = f"import subprocess, time; child = subprocess.Popen(['/bin/sleep', '60']); open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    monkeypatch.setattr(wheels, "_PIP", _program(child))
    with pytest.raises(WanCompatError, match="longer than 1 s"):
        install(manager)
    pid = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 2  # it was killed; the kernel ends it when it gets round to it
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert made(manager) == []


def test_a_full_disk_is_told_before_anything_is_fetched(manager, monkeypatch):
    free = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("wan_compat.supervisor.dependency_manager.shutil.disk_usage", lambda _: free)
    assert refuses(manager, DiskExceeded, "are free").exit_code == 6


def test_a_full_disk_is_told_when_pip_meets_it(manager, monkeypatch):
    said = (
        "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device'); sys.exit(1)"
    )
    monkeypatch.setattr(wheels, "_PIP", _program(said))
    refuses(manager, DiskExceeded, "no space is left")


def test_a_python_without_pip_is_told_how_to_get_it(manager, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "ensurepip" in refuses(manager, EnvironmentLacks, "has no pip").fixes[0]


def test_ctrl_c_leaves_nothing_and_is_recorded(manager):
    def interrupt(step: InstallStep) -> None:
        if step.what == "unpack":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manager.carry_out(manager.plan(str(DEMO), [Feature.GGUF]), interrupt)
    assert made(manager) == [] and installations()[-1]["outcome"] == "interrupted"


# ---- plans ---------------------------------------------------------------------------------------------------------


def test_the_registry_answers_for_a_model_that_is_not_here(manager):
    found = manager.plan("Wan-AI/Wan2.1-T2V-14B-Diffusers")
    assert found.source == "Wan-AI/Wan2.1-T2V-14B-Diffusers" and found.own == ()
    assert {"diffusers", "transformers", "torch"} <= {step.name for step in found.plan.steps}
    with pytest.raises(ModelNotFound):
        manager.plan("nobody/knows-this")


def test_nothing_is_planned_for_another_familys_model(manager, tmp_path):
    folder = tmp_path / "flux"
    folder.mkdir()
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]})
    )
    with pytest.raises(ModelNotCompatible):
        manager.plan(str(folder))


def test_what_a_repository_requires_is_shown_bounded_and_clean_and_changes_no_plan(manager, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    (model / "requirements.txt").write_text(
        "# comment\nwan-pipeline==1.0\n\x1b[31mevil @ https://example.org/x.whl\n--index-url http://x\n" * 60
    )
    (model / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["numpy<1", "miner"]\n[project.optional-dependencies]\nall = ["more"]\n'
    )
    (model / "setup.py").write_text("raise SystemExit('run')\n")
    (model / "setup.cfg").write_text("[options]\ninstall_requires =\n  one\n  two>=2\n")
    (model / "sub").mkdir()
    (model / "sub" / "requirements-dev.txt").write_text("x" * (70 << 10))
    found = manager.plan(str(model))
    shown = {item.path: item for item in found.own}
    assert shown["requirements.txt"].lines[0] == "wan-pipeline==1.0" and len(shown["requirements.txt"].lines) == 100
    assert "\x1b" not in "".join(shown["requirements.txt"].lines) and shown["requirements.txt"].note == "and 80 more"
    assert shown["pyproject.toml"].lines == ("numpy<1", "miner", "more [all]")
    assert shown["setup.cfg"].lines == ("one", "two>=2")
    assert shown["setup.py"].lines == () and shown["setup.py"].note == "not read"
    assert shown["sub/requirements-dev.txt"].note.startswith("larger than")
    assert found.plan == manager.plan(str(DEMO)).plan


@pytest.mark.parametrize(
    "text",
    [
        "[project]\ndependencies = 3\n",
        "project = 1\n",
        "[",
        "[project]\noptional-dependencies = []\n",
        "a = " + "[" * 5000,
    ],
)
def test_a_hostile_project_file_is_only_named(manager, tmp_path, text):
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    (model / "pyproject.toml").write_text(text)
    assert manager.plan(str(model)).own[0].note == "malformed, not read"


# ---- code of a repository ------------------------------------------------------------------------------------------


def test_code_of_a_repository_is_told_and_not_handed_out_without_approval(manager, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    bare = manager.check_remote_code_availability(str(model))
    assert not bare.is_available and bare.security_hash and bare.source_url is None
    (model / "pipeline.py").write_text("raise SystemExit('run')\n")
    status = manager.check_remote_code_availability(str(model))
    assert status.is_available and status.security_hash != bare.security_hash
    safe, trust = (
        manager.fetch_pipeline_code(str(model)),
        manager.fetch_pipeline_code(str(model), trust_remote_code=True),
    )
    assert not safe.success and "safe mode" in safe.error and safe.code_path is None
    assert not trust.success and "approved" in trust.error and trust.code_path is None

    from wan_compat.supervisor.repository_tree import read_tree
    from wan_compat.supervisor.trust_store import TrustStore, make_grant

    TrustStore().add(make_grant(read_tree(str(model)), imports=(), risks=()))
    trust = manager.fetch_pipeline_code(str(model), trust_remote_code=True)
    assert trust.success and trust.code_path == os.path.realpath(model) and trust.sha256 == status.security_hash
    assert not manager.fetch_pipeline_code(str(model)).success


def test_code_versions_by_name_and_by_number(manager):
    assert manager.validate_code_version("diffusers", "0.35.0.dev0").is_compatible
    assert not manager.validate_code_version("0.38.0", "0.40.0").is_compatible
    assert not manager.validate_code_version("no-such-package", "0.40.0").is_compatible


# ---- for real ------------------------------------------------------------------------------------------------------


@pytest.mark.network
@pytest.mark.skipif(
    os.environ.get("WAN_COMPAT_TEST_NETWORK") != "1", reason="set WAN_COMPAT_TEST_NETWORK=1 to install from PyPI"
)
def test_the_shipped_lock_installs_from_pypi(tmp_path):
    manager = DependencyManager()
    environment = manager.carry_out(manager.plan(str(DEMO), [Feature.GGUF, Feature.LORA, Feature.QUANTO]))
    assert {"gguf", "peft", "optimum-quanto", "ninja"} == {name for name, _ in environment.packages}
    code = (
        f"import sys; sys.path.insert(0, {environment.site!r}); import gguf, peft; print(gguf.__file__, peft.__file__)"
    )
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert all(path.startswith(environment.site) for path in said.stdout.split())
    assert Environments().get(environment.id) == environment
