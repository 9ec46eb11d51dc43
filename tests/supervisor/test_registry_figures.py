from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_registry_has_the_figures_that_the_planner_computes():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[2] / "tools" / "registry_memory.py")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
