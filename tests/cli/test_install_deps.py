"""`wan-compat install-deps` as a person and a script use it: real pip, tiny wheels in a folder, a real worker."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.assets.tiny_wheels import TinyPackage, lock_of, write_wheel
from tests.cli.conftest import Ended, RunCli, command
from wan_compat.policies.dependencies import Feature
from wan_compat.supervisor.cli.install_deps import Extra

DEMO = Path(__file__).resolve().parents[2] / "wan_compat" / "data" / "demo_model"
# Without the packages of features, which the suite may have installed for other tests; the next word is the lock.
BARE = ("-m", "tests.programs.cli_bare")
REPOSITORY = str(Path(__file__).resolve().parents[2])
# diffusers takes quanto for installed only where the module `optimum` is found: a tiny one leaves pipelines alone.
QUANTO = TinyPackage("optimum-quanto", "9.0", requires=("ninja>=9", "numpy"))
NINJA = TinyPackage("ninja", "9.1")
NOBODY_LISTENS = "https://127.0.0.1:9/simple"

Installs = Callable[..., Ended]


@pytest.fixture
def wheelhouse(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A folder with wheels, which the user's setting names as the index."""
    environment["WAN_COMPAT_PACKAGE_INDEX"] = str(tmp_path / "wheelhouse")
    return tmp_path / "wheelhouse"


@pytest.fixture
def bare(cli: RunCli, environment: dict[str, str]) -> RunCli:
    """Run `install-deps` where only the libraries of every worker are installed, with the lock that is shipped."""
    environment["PYTHONPATH"] = REPOSITORY
    return functools.partial(cli, program=(*BARE, "-", "install-deps"))


@pytest.fixture
def installs(tmp_path: Path, wheelhouse: Path, bare: RunCli) -> Installs:
    """As `bare`, on the demo model, where the given tiny packages are what may be installed."""

    def run(*arguments: str, packages: tuple[TinyPackage, ...] = (QUANTO, NINJA)) -> Ended:
        path = tmp_path / "lock.json"
        if not path.exists():
            path.write_text(lock_of(wheelhouse, *packages).model_dump_json())
        return bare(DEMO, *arguments, program=(*BARE, str(path), "install-deps"))

    return run


def environments(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "data" / "wan-compat" / "environments"
    return [path for path in folder.iterdir() if path.is_dir()] if folder.exists() else []


def nothing_was_installed(tmp_path: Path) -> bool:
    return not environments(tmp_path) and not (tmp_path / "state" / "wan-compat" / "environments.json").exists()


def test_the_options_values_are_the_policys_features() -> None:
    assert {item.name: item.value for item in Extra} == {item.name: item.value for item in Feature}


def test_a_worker_generates_a_video_from_the_environment_that_was_installed(
    installs: Installs, cli: RunCli, cwd: Path, tmp_path: Path
) -> None:
    ended = installs("--with", "quanto", "--yes", "--json")
    assert ended.code == 0, ended
    document = ended.document
    assert document["schema_version"] == 1 and document["installed"] is True and document["exists"] is False
    changes = {item["name"]: item["action"] for item in document["packages"] if item["wheel"]}
    assert changes == {"optimum-quanto": "install", "ninja": "install"}
    assert "[1/3] fetching ninja 9.1" in ended.err and "[3/3] unpacking 2 packages" in ended.err
    (folder,) = environments(tmp_path)
    assert document["site"] == str(folder / "site") and document["environment"] == folder.name

    size = ("--width", "32", "--height", "32", "--num-frames", "5", "--num-inference-steps", "1")
    ended = cli("generate", DEMO, "--prompt", "a white ball", *size, "--output", "one.mp4", "--json")
    assert ended.code == 0, ended
    made_with = ended.document["metadata"]["system_info"]
    assert made_with["environment"] == folder.name
    assert (made_with["optimum-quanto"], made_with["ninja"]) == ("9.0", "9.1")
    assert ended.document["sandbox"]["tier"] in "AB" and (cwd / "one.mp4").stat().st_size > 0

    forgotten = installs("--forget", "--json")
    assert forgotten.code == 0 and forgotten.document["forgotten"] is True
    ended = cli("generate", DEMO, "--prompt", "a white ball", *size, "--output", "two.mp4", "--json")
    assert ended.code == 0, ended
    assert not {"environment", "optimum-quanto"} & set(ended.document["metadata"]["system_info"])


@pytest.mark.long
def test_a_second_time_nothing_is_asked_or_fetched(installs: Installs, wheelhouse: Path, tmp_path: Path) -> None:
    first = installs("--with", "quanto", "--yes")
    assert first.code == 0 and "\nInstalled: " in first.out and "use it from now on" in first.out, first
    shutil.rmtree(wheelhouse)
    again = installs()
    assert again.code == 0, again
    assert "in an environment that is here already" in again.out and "use it already" in again.out
    assert again.err == "" and len(environments(tmp_path)) == 1
    assert installs("--forget", "--dry-run").out == "The model would use the usual packages again.\n"
    assert installs("--forget").out == "The model uses the usual packages again.\n"
    assert installs("--forget").out == "The model uses the usual packages; nothing to forget.\n"
    assert "nothing to do" in installs().out


def test_a_dry_run_shows_the_plan_and_needs_no_network(bare: RunCli, tmp_path: Path) -> None:
    network = {"WAN_COMPAT_PACKAGE_INDEX": NOBODY_LISTENS}
    shown = bare(DEMO, "--with", "quanto", "--dry-run", **network)
    assert shown.code == 0, shown
    assert "optimum-quanto | - | >=0.2.6 | " in shown.out and f" from {NOBODY_LISTENS}, for workers" in shown.out
    told = bare(DEMO, "--with", "quanto", "--dry-run", "--json", **network).document
    wheels = [item["wheel"] for item in told["packages"] if item["wheel"]]
    assert len(wheels) == 2 and all(len(wheel["sha256"]) == 64 for wheel in wheels)
    assert told["dry_run"] is True and told["installed"] is False and told["download_bytes"] > 0
    assert nothing_was_installed(tmp_path)


def test_without_a_terminal_nobody_has_agreed(bare: RunCli, wheelhouse: Path, tmp_path: Path) -> None:
    ended = bare(DEMO, "--with", "lora", stdin=b"y\n")
    assert ended.code == 5 and "Not confirmed" in ended.err and "--dry-run" in ended.err
    assert "peft | " in ended.out, "what would have been installed is shown all the same"
    assert nothing_was_installed(tmp_path)


@pytest.mark.parametrize(("answer", "code", "words"), [(b"\n", 5, "Not confirmed"), (b"y\n", 3, "has no peft-")])
def test_at_a_terminal_only_a_yes_is_one(
    terminal: RunCli, bare: RunCli, wheelhouse: Path, tmp_path: Path, answer: bytes, code: int, words: str
) -> None:
    wheelhouse.mkdir()
    ended = terminal(DEMO, "--with", "lora", act=lambda: answer, program=(*BARE, "-", "install-deps"))
    assert ended.code == code and "Install? [y/N]" in ended.out and words in ended.out, ended
    assert nothing_was_installed(tmp_path)


def test_what_a_repository_requires_is_shown_clean_and_not_installed(
    bare: RunCli, wheelhouse: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    (model / "requirements.txt").write_text("wan-pipeline==1.0\n\x1b[31mevil @ https://example.org/x.whl\n")
    ended = bare(model, "--yes")
    assert ended.code == 0, ended
    assert "requirements.txt (shown only; nothing of it is installed):\n  wan-pipeline==1.0\n" in ended.out
    assert "\x1b" not in ended.out and "pip install" not in ended.out
    assert bare(model, "--dry-run", "--json").document["own_requirements"][0]["lines"]
    assert nothing_was_installed(tmp_path)


def test_a_version_conflict_names_both_and_ends_with_3(installs: Installs, tmp_path: Path) -> None:
    packages = (TinyPackage("optimum-quanto", "9.0", requires=("numpy>=99",)), TinyPackage("numpy", "2.0"))
    shown = installs("--with", "quanto", "--dry-run", packages=packages)
    assert shown.code == 3 and "Cannot be installed: version conflict: optimum-quanto 9.0 wants numpy>=99" in shown.out
    ended = installs("--with", "quanto", "--yes")
    assert ended.code == 3 and "wants numpy>=99" in ended.err and "wants numpy>=99" not in ended.out, ended
    error = installs("--with", "quanto", "--yes", "--json").document["error"]
    assert error["code"] == "version_conflict" and len(error["details"]["conflicts"]) == 1
    assert nothing_was_installed(tmp_path)


def test_other_bytes_than_pinned_are_refused_with_5(installs: Installs, wheelhouse: Path, tmp_path: Path) -> None:
    assert installs("--with", "quanto", "--dry-run").code == 0  # writes the wheels
    write_wheel(wheelhouse, TinyPackage("ninja", "9.1", code="raise SystemExit('evil')\n"))
    ended = installs("--with", "quanto", "--yes", "--json")
    assert ended.code == 5 and ended.document["error"]["code"] == "hash_mismatch", ended
    audit = (tmp_path / "state" / "wan-compat" / "audit.jsonl").read_text().splitlines()
    fields = json.loads(audit[-1])["fields"]
    assert (fields["outcome"], fields["code"]) == ("failed", "hash_mismatch")
    assert nothing_was_installed(tmp_path)


@pytest.mark.parametrize(
    ("index", "words"), [(NOBODY_LISTENS, "cannot be reached"), ("/nonexistent/wheels", "is no folder here")]
)
def test_an_index_that_is_not_there_ends_with_3_and_says_what_to_do(
    bare: RunCli, tmp_path: Path, index: str, words: str
) -> None:
    ended = bare(DEMO, "--with", "lora", "--yes", WAN_COMPAT_PACKAGE_INDEX=index)
    assert ended.code == 3 and f"{index} {words}" in ended.err and "WAN_COMPAT_PACKAGE_INDEX" in ended.err, ended
    assert nothing_was_installed(tmp_path)


def test_ctrl_c_ends_pip_and_leaves_nothing(bare: RunCli, tmp_path: Path, environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and never says a word
        environment["WAN_COMPAT_PACKAGE_INDEX"] = f"https://127.0.0.1:{silent.getsockname()[1]}/simple"
        arguments = command(DEMO, "--with", "lora", "--yes", program=(*BARE, "-", "install-deps"))
        with subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()  # pip is there
            with connection:
                started = time.monotonic()
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Interrupted" in said and time.monotonic() - started < 10
    assert nothing_was_installed(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [("--with", "nonsense"), ("--with", "pip"), ("--with", "lora", "--forget"), ("--index", "https://example.org")],
)
def test_what_makes_no_sense_is_a_usage_error(bare: RunCli, arguments: tuple[str, ...]) -> None:
    assert bare(DEMO, *arguments, "--dry-run", "--json").document["error"]["code"] == "invalid_request"


def test_an_index_without_encryption_is_a_usage_error(bare: RunCli) -> None:
    ended = bare(DEMO, "--dry-run", WAN_COMPAT_PACKAGE_INDEX="http://example.org/simple")
    assert ended.code == 2 and "https://" in ended.err


def test_a_working_folder_does_not_say_where_packages_come_from(bare: RunCli, cwd: Path) -> None:
    (cwd / "wan-compat.toml").write_text('package_index = "https://example.org/simple"\n')
    ended = bare(DEMO, "--with", "lora", "--dry-run")
    assert ended.code == 5 and "package_index" in ended.err


def test_a_model_that_is_nowhere_is_named_with_what_to_do(bare: RunCli) -> None:
    ended = bare("nobody/knows-this", "--dry-run")
    assert ended.code == 4 and "wan-compat check nobody/knows-this --download" in ended.err
    assert bare("nobody/knows-this", "--forget").code == 4


def test_a_model_that_only_the_registry_knows_can_be_asked_about_and_forgotten(bare: RunCli) -> None:
    known = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
    assert "peft | " in bare(known, "--with", "lora", "--dry-run").out
    ended = bare(known, "--forget")
    assert ended.code == 0 and "nothing to forget" in ended.out
