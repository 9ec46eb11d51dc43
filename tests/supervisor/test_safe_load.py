"""What SafeLoadManager answers is what jobs are held to, and nothing that is set on it opens a door."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat.policies.policy import Policy
from wan_compat.protocol import errors
from wan_compat.supervisor import safe_load, sandbox_environment
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.safe_load import SafeLoadManager
from wan_compat.supervisor.sandbox_environment import SandboxEnvironment
from wan_compat.supervisor.trust_store import TrustStore, make_grant

PROGRAM = str(Path(__file__).resolve().parent.parent / "programs" / "untrusted_program.py")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (folder / "pipeline.py").write_text("import torch\n")
    return folder


def approve(model: Path) -> None:
    TrustStore().add(make_grant(read_tree(str(model)), imports=[], risks=[]))


# -- the manager -----------------------------------------------------------------------------------------------------


def test_the_default_is_safe() -> None:
    manager = SafeLoadManager()
    assert manager.mode == "safe" and manager.trusted_sources == set() and manager.security_policies == Policy()


@pytest.mark.parametrize("mode", ["", "SAFE", "unsafe", "Mode.SAFE", None, 1])
def test_other_modes_are_a_value_error_and_change_nothing(mode: str) -> None:
    manager = SafeLoadManager("trust")
    with pytest.raises(ValueError, match="'safe' and 'trust'"):
        manager.set_loading_mode(mode)
    assert manager.mode == "trust"
    with pytest.raises(ValueError, match="known are"):
        SafeLoadManager(mode)
    manager.set_loading_mode("safe")
    assert manager.mode == "safe"


def test_a_source_is_trusted_as_long_as_it_is_what_was_approved(model: Path) -> None:
    assert not SafeLoadManager().is_source_trusted(str(model))
    approve(model)
    manager = SafeLoadManager()
    assert manager.trusted_sources == {str(model)} and manager.is_source_trusted(str(model))
    (model / "pipeline.py").write_text("import os\n")
    assert not manager.is_source_trusted(str(model))


def test_a_name_that_is_only_added_to_the_set_is_not_trusted(model: Path) -> None:
    manager = SafeLoadManager("trust")
    manager.trusted_sources |= {str(model), "org/name"}
    assert not manager.is_source_trusted(str(model)) and not manager.is_source_trusted("org/name")
    approve(model)
    assert manager.is_source_trusted(str(model))
    manager.trusted_sources.clear()
    assert not manager.is_source_trusted(str(model))


def test_a_store_that_cannot_be_believed_is_no_answer(model: Path, tmp_path: Path) -> None:
    approve(model)
    manager = SafeLoadManager()
    (tmp_path / "state" / "wan-compat" / "trust.json").write_text("[]")
    with pytest.raises(errors.StateCorrupt):
        manager.is_source_trusted(str(model))
    with pytest.raises(errors.StateCorrupt):
        SafeLoadManager()


def test_policies_come_from_validated_files_and_the_working_folder_only_tightens(tmp_path: Path) -> None:
    (tmp_path / "config" / "wan-compat").mkdir(parents=True)
    (tmp_path / "config" / "wan-compat" / "config.toml").write_text("[policy]\nthreads = 64\n")
    (tmp_path / "work" / "wan-compat.toml").write_text("[policy]\nmode = 'safe'\nthreads = 32\n")
    policy = SafeLoadManager().security_policies
    assert (policy.threads, policy.mode.value) == (32, "safe")
    (tmp_path / "work" / "wan-compat.toml").write_text("[policy]\nthreads = 65\n")
    with pytest.raises(errors.RefusedByPolicy):
        SafeLoadManager()
    (tmp_path / "work" / "wan-compat.toml").write_text("[policy]\nthread = 65\n")
    with pytest.raises(errors.InvalidRequest):
        SafeLoadManager()


DANGEROUS = "import os\nos.system('id')\n"


@pytest.mark.parametrize(("source", "level"), [(DANGEROUS, "high"), ("import torch\nx = 1\n", "low")])
def test_source_text_is_judged_without_running_it(source: str, level: str) -> None:
    found = SafeLoadManager().validate_remote_code_safety(source)
    assert found.risk_level == level and found.is_safe == (level == "low")
    assert bool(found.detected_risks) == bool(found.mitigation_strategies) == (level != "low")


def test_a_folder_is_judged_by_the_scanner(model: Path) -> None:
    manager = SafeLoadManager()
    (model / "pipeline.py").write_text(DANGEROUS)
    found = manager.validate_remote_code_safety(str(model))
    assert (
        not found.is_safe and found.risk_level == "high" and any("pipeline.py" in risk for risk in found.detected_risks)
    )
    with pytest.raises(errors.ModelNotFound):
        manager.validate_remote_code_safety("/nowhere")


def test_options_tell_what_is_in_force(model: Path, tmp_path: Path) -> None:
    (tmp_path / "work" / "wan-compat.toml").write_text("[policy]\ntimeout = 90\nmemory_limit = '1GiB'\n")
    options = SafeLoadManager().get_safe_loading_options(str(model))
    assert (options.timeout_seconds, options.memory_limit_mb) == (90, 1024)
    assert options.use_sandbox and not options.allow_remote_code
    assert {"unpickle", "run_repository_code", "read_host_files", "open_network_socket"} <= set(
        options.restricted_operations
    )


def test_remote_code_is_allowed_only_in_trust_mode_for_what_was_approved(model: Path, tmp_path: Path) -> None:
    manager = SafeLoadManager("trust")
    assert not manager.get_safe_loading_options(str(model)).allow_remote_code
    approve(model)
    manager = SafeLoadManager("trust")
    options = manager.get_safe_loading_options(str(model))
    assert options.allow_remote_code and options.use_sandbox
    assert "run_repository_code" not in options.restricted_operations
    manager.set_loading_mode("safe")
    assert not manager.get_safe_loading_options(str(model)).allow_remote_code
    (tmp_path / "work" / "wan-compat.toml").write_text("[policy]\nmode = 'safe'\n")
    assert not SafeLoadManager("trust").get_safe_loading_options(str(model)).allow_remote_code


def test_a_real_model_gets_time_for_its_bytes_and_the_memory_that_is_free() -> None:
    options = SafeLoadManager().get_safe_loading_options(str(tiny_model("t2v")))
    assert options.timeout_seconds >= 120 and options.memory_limit_mb >= 768


def test_the_contract_s_names_are_here() -> None:
    assert [field.name for field in safe_load.dataclasses.fields(safe_load.SafeLoadingOptions)] == [
        "allow_remote_code",
        "use_sandbox",
        "restricted_operations",
        "timeout_seconds",
        "memory_limit_mb",
    ]


# -- the environment -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxEnvironment]:
    with SafeLoadManager().create_sandboxed_environment() as environment:
        yield environment


def test_an_ordinary_program_runs_in_tier_a_or_b_with_its_arguments_and_nothing_else(
    sandbox: SandboxEnvironment,
) -> None:
    assert sandbox.level.value in ("A", "B") and sandbox.limits.memory_bytes > 0
    done = sandbox.run(PROGRAM, "ordinary", "b c")
    assert done.exit_code == 3 and done.output == "in /scratch with ['b c'] []\n"
    assert {"seccomp", "landlock", "mount_namespace", "net_namespace"} <= set(done.layers)


@pytest.mark.parametrize("what", ["read", "write", "exec", "fork", "network", "kill"])
def test_what_would_reach_outside_fails(what: str, sandbox: SandboxEnvironment, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("did it: a secret")
    argument = {"read": str(secret), "kill": str(os.getpid())}.get(what, "")
    done = sandbox.run(PROGRAM, what, argument)
    assert done.exit_code != 0 and "did it" not in done.output and "Error" in done.output


def test_a_flagrant_call_ends_it(sandbox: SandboxEnvironment) -> None:
    assert sandbox.run(PROGRAM, "ptrace").exit_code == -31


def test_memory_is_bounded() -> None:
    with SandboxEnvironment(Policy(memory_limit_bytes=800 << 20)) as environment:
        done = environment.run(PROGRAM, "memory")
    assert done.exit_code in (1, -9) and "did it" not in done.output


def test_a_program_that_hangs_or_floods_is_ended(sandbox: SandboxEnvironment) -> None:
    for what in ("hang", "flood"):
        with pytest.raises(errors.DeadlineExceeded, match="killed"):
            sandbox.run(PROGRAM, what, timeout_s=0.6)


def test_output_is_cleaned(sandbox: SandboxEnvironment, tmp_path: Path) -> None:
    program = tmp_path / "p.py"
    program.write_text("print('\\x1b[2J\\u202e')")
    assert sandbox.run(str(program)).output == "\\x1b[2J\\u{202e}\n"


@pytest.mark.parametrize("kind", ["absent", "folder", "fifo", "large"])
def test_what_is_no_program_is_a_typed_error(kind: str, sandbox: SandboxEnvironment, tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(errors.ModelNotFound):
        sandbox.run(str(path))


def test_a_closed_environment_and_endless_arguments_are_typed_errors(sandbox: SandboxEnvironment) -> None:
    with pytest.raises(errors.InvalidRequest, match="longer"):
        sandbox.run(PROGRAM, "x" * 100_000)
    with pytest.raises(errors.InvalidRequest, match="NUL"):
        sandbox.run(PROGRAM, "\0")
    environment = SandboxEnvironment()
    environment.close()
    with pytest.raises(errors.InvalidRequest, match="closed"):
        environment.run(PROGRAM, "ordinary")


def test_a_sandbox_that_does_not_hold_runs_nothing(
    sandbox: SandboxEnvironment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The launcher is told that everything must be denied that no layer denies."""
    real = sandbox_environment.program_argv

    def argv(*arguments: object) -> list[str]:
        command = real(*arguments)  # type: ignore[arg-type]
        code = (
            "import sys; from wan_compat.sandbox import program, selftest\n"
            "real = selftest.expected_denied\n"
            "selftest.expected_denied = lambda layers: real(layers) | {'not_denied_by_anything'}\n"
            "program.main(sys.argv[1])"
        )
        return [command[0], "-I", "-c", code, command[-1]]

    monkeypatch.setattr(sandbox_environment, "program_argv", argv)
    with pytest.raises(errors.SandboxUnavailable, match="not_denied_by_anything"):
        sandbox.run(PROGRAM, "ordinary")
