"""Tiny checkpoints for tests, built once per machine: `tiny_model("t2v")`.

As a command, `python -m tests.assets.tiny_wan t2v DIR` builds one anywhere. The builder is the package's own
(`wan_compat.workers.tiny_models`), run in a process of its own: a test process that imported torch would be slow, and
unfit for testing the parts that must not import it. The cache's name has the builder's hash in it; a lock makes it safe
under pytest-xdist, and a rename makes a half-built checkpoint impossible.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import filelock

BUILD_TIMEOUT_S = 100


def tiny_model(kind: str) -> Path:
    """Return the folder of a tiny checkpoint, building it if this machine has none. Copy it to change it."""
    cache = cache_folder()
    folder = cache / kind
    with filelock.FileLock(cache / f"{kind}.lock", timeout=BUILD_TIMEOUT_S):
        if not folder.is_dir():
            unfinished = cache / f"{kind}.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            build(kind, unfinished)
            unfinished.rename(folder)
    return folder


def tiny_models(kinds: Iterable[str]) -> dict[str, Path]:
    """Return the folders of several kinds. One process builds those that lack: it imports longer than it builds."""
    cache = cache_folder()
    with contextlib.ExitStack() as stack:
        # In one order everywhere, so that two processes cannot wait for each other.
        for kind in sorted(set(kinds)):
            stack.enter_context(filelock.FileLock(cache / f"{kind}.lock", timeout=BUILD_TIMEOUT_S))
        unfinished = {kind: cache / f"{kind}.part" for kind in kinds if not (cache / kind).is_dir()}
        for folder in unfinished.values():
            shutil.rmtree(folder, ignore_errors=True)
        if unfinished:
            _build(unfinished)
        for kind, folder in unfinished.items():
            folder.rename(cache / kind)
    return {kind: cache / kind for kind in kinds}


def build(kind: str, folder: Path) -> None:
    """Write the checkpoint of `kind` into `folder`, in a subprocess."""
    _build({kind: folder})


def _build(folders: Mapping[str, Path]) -> None:
    pairs = [word for kind, folder in folders.items() for word in (kind, str(folder))]
    command = [sys.executable, "-I", "-m", "wan_compat.workers.tiny_models", *pairs]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"building {', '.join(folders)} failed:\n{done.stderr[-3000:]}")


def cache_folder(*sources: Path) -> Path:
    """Return the folder for what the builder, and `sources` besides, make; made new when one of them changes."""
    source = importlib.util.find_spec("wan_compat.workers.tiny_models")
    assert source is not None and source.origin is not None
    digest = hashlib.sha256()
    for other in (*sorted(Path(source.origin).parent.glob("tiny_*.py")), *sources):
        digest.update(other.read_bytes())
    for package in ("torch", "diffusers", "transformers"):
        digest.update(importlib.metadata.version(package).encode())
    folder = Path(tempfile.gettempdir()) / f"wan-compat-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise RuntimeError(f"{folder} belongs to someone else or is open to others; remove it")
    folder /= digest.hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m tests.assets.tiny_wan KIND OUTDIR")
    build(sys.argv[1], Path(sys.argv[2]))
