"""The models that come along: one trained for the demo, and tiny ones with random weights that are built once.

The trained one is package data (docs/demo_model.md tells what it can draw and how it was made). The random ones
are written by the workers' room in a process of its own, since this one imports no torch, into the user's cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wan_compat._version import __version__
from wan_compat.protocol.errors import EnvironmentLacks, WorkerExtraMissing, clean_text

BUILD_TIMEOUT_S = 300.0
TINY_KINDS = ("t2v", "i2v", "ti2v", "a14b", "vace")


@dataclasses.dataclass(frozen=True)
class Clip:
    """What to ask of a demo model, and what to tell a person about the outcome."""

    prompt: str
    width: int
    height: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    fps: float
    remark: str


# The only size and length that the model was trained for.
DEMO_CLIP = Clip(
    prompt="a white ball growing over a dark blue background",
    width=160,
    height=96,
    num_frames=33,
    num_inference_steps=12,
    guidance_scale=1.0,
    fps=16.0,
    remark="The demo model is a toy of five million parameters that knows one grammar: a colour, a shape, a motion, a "
    'background. Try --prompt "a yellow triangle moves left over the sea".',
)
TINY_CLIP = Clip(
    prompt="a red ball bounces to the right on a blue background",
    width=96,
    height=64,
    num_frames=17,
    num_inference_steps=4,
    guidance_scale=4.0,
    fps=8.0,
    remark="The weights of this model are random: coloured noise is the right picture. It shows that the path works.",
)


def demo_model() -> str:
    """Return the folder of the trained demo model.

    Raises:
        EnvironmentLacks: The installation has no package data.
    """
    folder = Path(__file__).parent.parent / "data" / "demo_model"
    if not (folder / "model_index.json").is_file():
        raise EnvironmentLacks(f"the demo model is missing from {folder}", hint="install wan-compat again")
    return str(folder)


def tiny_model(kind: str, *, announce: Callable[[str], None]) -> str:
    """Return the folder of the tiny random-weight model of `kind`, building it on the first call of this version.

    Raises:
        WorkerExtraMissing: torch or diffusers are not installed.
        EnvironmentLacks: The build failed, or the cache folder cannot be written.
    """
    if kind not in TINY_KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    import filelock
    import platformdirs

    cache = platformdirs.user_cache_path("wan-compat", appauthor=False) / "tiny_models"
    folder = cache / f"{kind}-{__version__}"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Two demos at once build it once. The folder appears whole, by a rename, or not at all.
        with filelock.FileLock(cache / f"{kind}.lock", timeout=BUILD_TIMEOUT_S):
            if not folder.is_dir():
                announce(f"Building the tiny {kind} model (once, about ten seconds) ...")
                with tempfile.TemporaryDirectory(prefix=f"{kind}-", dir=cache) as scratch:
                    _build(kind, Path(scratch) / "model")
                    os.rename(Path(scratch) / "model", folder)
    except filelock.Timeout as error:
        raise EnvironmentLacks(f"another process has been building the {kind} model for too long") from error
    except OSError as error:
        raise EnvironmentLacks(
            f"the cache folder {cache} cannot be written: {error.strerror or error}",
            hint="set XDG_CACHE_HOME to a folder that can",
        ) from error
    return str(folder)


@contextlib.contextmanager
def demo_media(kind: str | None) -> Iterator[dict[str, Any]]:
    """Give what a tiny model of `kind`, or the trained one (None), works from: a picture, drawn for the job's time."""
    role = {"i2v": "image", "vace": "references"}.get(kind or "")
    if role is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="wan-compat-demo-") as folder:
        path = Path(folder) / "picture.png"
        path.write_bytes(_picture(TINY_CLIP.width, TINY_CLIP.height))
        yield {role: (str(path),) if role == "references" else str(path)}


def _picture(width: int, height: int) -> bytes:
    """Return a PNG: a red ball on a blue ground."""
    from wan_compat.supervisor.frame_files import png_bytes

    radius = height // 4
    pixels = bytearray()
    for row in range(height):
        for column in range(width):
            inside = (row - height // 2) ** 2 + (column - width // 2) ** 2 < radius**2
            pixels += bytes((200, 30, 30) if inside else (30, 40, 120))
    return png_bytes(memoryview(pixels), width, height)


def _build(kind: str, folder: Path) -> None:
    # -I: neither the working folder nor the user's environment may decide which modules are imported.
    command = [sys.executable, "-I", "-m", "wan_compat.workers.tiny_models", kind, str(folder)]
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    try:
        done = subprocess.run(
            command,
            env=environment | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLacks(f"building the {kind} model took longer than {BUILD_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        last_line = clean_text(done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2], 500)
        if "ModuleNotFoundError" in last_line:
            raise WorkerExtraMissing(
                f"building the {kind} model failed: {last_line}", hint='pip install "wan-compat[worker]"'
            )
        raise EnvironmentLacks(f"building the {kind} model failed (exit {done.returncode}): {last_line}")
