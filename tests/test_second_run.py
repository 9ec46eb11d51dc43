"""The ordinary user's run leaves out nothing that is about users (second_run.py)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import second_run


@pytest.mark.parametrize("entry", second_run.LEFT_OUT)
def test_every_entry_names_something_that_exists(entry: str, repository: Path) -> None:
    path, _, function = entry.partition("::")
    assert (repository / path).exists()
    if function:
        assert re.search(rf"^def {function}\(", (repository / path).read_text(), re.MULTILINE)


def test_the_rooms_of_the_sandbox_and_the_attacks_run_twice(repository: Path) -> None:
    files = [str(path.relative_to(repository)) for path in (repository / "tests").rglob("test_*.py")]
    twice = [file for file in files if file.startswith(("tests/sandbox/", "tests/security/"))]
    twice += [
        f"tests/supervisor/test_{name}.py" for name in ("client", "kill_chain", "tiers", "private_files", "outputs")
    ]
    assert len(twice) > 30 and not [file for file in twice if second_run.left_out(file)]
    assert not [entry for entry in second_run.LEFT_OUT if entry.startswith(("tests/sandbox", "tests/security"))]


def test_a_test_is_found_by_folder_file_or_name_and_by_no_beginning_of_one() -> None:
    assert second_run.left_out("tests/policies/scan/test_rules.py::test_x[1]")
    assert second_run.left_out("tests/cli/test_demo.py::test_an_offered_variant_is_built_and_runs[t2v::x]")
    assert not second_run.left_out("tests/cli/test_demo.py")
    assert not second_run.left_out("tests/cli/test_demo.py::test_an_offered_variant_is_built_and_runs_twice")
    assert not second_run.left_out("tests/policies_of_another_room/test_x.py")


def test_what_is_called_pure_cannot_start_a_process_or_give_a_file_away(tmp_path: Path) -> None:
    for call in (
        lambda: subprocess.run(["/bin/true"], check=True),
        lambda: os.chown(tmp_path, os.geteuid(), os.getegid()),
        lambda: os.system("true"),
    ):
        with pytest.raises(second_run.NotPure), second_run.watched():
            call()
    subprocess.run(["/bin/true"], check=True)


def test_a_test_that_root_skips_for_being_root_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert second_run.skipped_as_root("root may read everything")
    assert not second_run.skipped_as_root("needs an NVIDIA GPU")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not second_run.skipped_as_root("only root may mount")
