"""What of the host's files a Python worker gets to see."""

from __future__ import annotations

import os
import sys

from tests.sandbox.harness import REPOSITORY
from wan_compat.sandbox.runtime_view import runtime_binds, runtime_files
from wan_compat.sandbox.spec import Identity


def test_neither_homes_nor_prefixes_nor_the_repository_are_bound() -> None:
    targets = {bind.target for bind in runtime_binds()}
    assert targets.isdisjoint({"/", "/usr", "/home", "/root", "/etc", os.path.expanduser("~"), sys.prefix})
    assert str(REPOSITORY) not in targets
    assert not any(str(REPOSITORY / "tests").startswith(target + "/") for target in targets)


def test_everything_that_is_imported_lies_in_the_view() -> None:
    targets = [bind.target for bind in runtime_binds()]
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and "/tests/" not in path and "site-packages" in path:
            assert any(path.startswith(target + "/") for target in targets), path
    import wan_compat

    folder = os.path.dirname(wan_compat.__file__)
    assert any(f"{folder}/".startswith(target + "/") for target in targets)


def test_targets_are_unique_and_exist() -> None:
    binds = runtime_binds()
    assert len({bind.target for bind in binds}) == len(binds)
    assert all(os.path.exists(bind.source) for bind in binds)


def test_processor_facts_are_copied() -> None:
    files = {file.target: file.content for file in runtime_files(Identity(5, 6))}
    assert b"processor" in files["/proc/cpuinfo"]
    assert files["/etc/passwd"].startswith(b"worker:x:5:6:")
    assert len(files["/etc/passwd"].splitlines()) == 1
