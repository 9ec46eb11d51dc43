"""What the tests of the sandbox share: running a small program that enters it, and the layers that apply to this user.

Entering forks, and a fork of pytest's process would copy its threads' locks; so every entry happens in a program of
`tests/programs`, which answers with one JSON document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from wan_compat.sandbox.spec import ALL_LAYERS, NAMESPACE_LAYERS, Layer

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PROGRAMS = REPOSITORY / "tests" / "programs"
ROOT = os.geteuid() == 0

# Root's workers in tests; the same number for a victim process shows that not the uid is what protects it.
WORKER_UID = 61999


def full_layers() -> frozenset[Layer]:
    """Every layer that this user can enter without a cgroup."""
    return ALL_LAYERS - {Layer.CGROUP} - ({Layer.USER_NAMESPACE} if ROOT else set())


def alone(*layers: Layer) -> frozenset[Layer]:
    """The given layers with what they cannot do without, and nothing else."""
    needed = {*layers, Layer.CREDENTIALS}
    if needed & {Layer.LANDLOCK, Layer.SECCOMP}:
        needed.add(Layer.NO_NEW_PRIVS)
    if Layer.VIEW in needed:
        needed.add(Layer.MOUNT_NAMESPACE)
    if needed & NAMESPACE_LAYERS and not ROOT:
        needed.add(Layer.USER_NAMESPACE)
    return frozenset(needed)


def run_program(name: str, order: dict[str, Any], *, timeout_s: float = 60.0) -> Any:
    """Run a program of `tests/programs` with `order`, and return the JSON of its last line."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAMS / f"{name}.py"), json.dumps(order)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": os.path.expanduser("~")},
    )
    lines = finished.stdout.strip().splitlines()
    assert lines, f"{name} said nothing and ended with {finished.returncode}: {finished.stderr[-2000:]}"
    return json.loads(lines[-1])


def names(layers: frozenset[Layer]) -> list[str]:
    return sorted(layer.value for layer in layers)
