"""A small real library in the place of NVIDIA's libnvidia-ml, from C source that pretends."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def build_driver(folder: Path, source: str) -> Path:
    """Compile `source` in `folder` under the library's name and return its path; skip where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to build a driver library that pretends")
    (folder / "nvml.c").write_text(source)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "nvml.c")], check=True)
    return library
