"""Checkpoints of the tiny kinds with wider transformers, built once per machine: `wide_models({"t2v", "helios"})`.

In a tiny model the embedding of the timestep and the latents outweigh what a block takes. Here a block has the proportions of
a real one: heads of 64, a feed-forward of four times the width.

As a command, `python -m tests.assets.wide_wan KIND OUTDIR ...` builds some anywhere.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import filelock

from tests.assets.tiny_wan import BUILD_TIMEOUT_S, cache_folder

_WIDTH = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024}
_DIM = 256
_ROTATED = (24, 20, 20)  # of Helios' heads: time, height, width


def wide_models(kinds: Iterable[str]) -> dict[str, Path]:
    """Return the folders of several kinds. One process builds those that lack."""
    cache = cache_folder(Path(__file__))
    with filelock.FileLock(cache / "wide.lock", timeout=BUILD_TIMEOUT_S):
        lacking = sorted(kind for kind in set(kinds) if not (cache / f"wide-{kind}").is_dir())
        unfinished = {kind: cache / f"wide-{kind}.part" for kind in lacking}
        for folder in unfinished.values():
            shutil.rmtree(folder, ignore_errors=True)
        if unfinished:
            pairs = [word for kind, folder in unfinished.items() for word in (kind, str(folder))]
            command = [sys.executable, "-m", "tests.assets.wide_wan", *pairs]
            done = subprocess.run(
                command,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        for kind, folder in unfinished.items():
            folder.rename(cache / f"wide-{kind}")
    return {kind: cache / f"wide-{kind}" for kind in kinds}


def build(kind: str, folder: str) -> None:
    """Write one. Changes the builder's tables: for a process that does nothing else."""
    from wan_compat.workers import tiny_models, tiny_modular, tiny_relatives

    sizes: tuple[dict[str, Any], ...] = (tiny_models._TRANSFORMER, tiny_relatives._SIZES, tiny_relatives._NORMED)
    for table in sizes:
        table.update(_WIDTH)
    tiny_relatives._PICTURE["added_kv_proj_dim"] = _DIM
    tiny_modular._ANIMATE2.update(dim=_DIM, num_heads=_WIDTH["num_attention_heads"], ffn_dim=_WIDTH["ffn_dim"])
    tiny_models._transformer = _transformer
    tiny_relatives._helios_transformer = _helios_transformer
    tiny_models.build(kind, folder)


def _transformer(**changes: Any) -> Any:
    import diffusers

    from wan_compat.workers import tiny_models

    if "added_kv_proj_dim" in changes:
        changes["added_kv_proj_dim"] = _DIM
    return diffusers.WanTransformer3DModel(**{**tiny_models._TRANSFORMER, **changes})


def _helios_transformer() -> Any:
    import diffusers

    from wan_compat.workers import tiny_relatives

    sizes = {name: value for name, value in tiny_relatives._NORMED.items() if name != "rope_max_seq_len"}
    return diffusers.HeliosTransformer3DModel(**sizes, in_channels=16, rope_dim=_ROTATED)


if __name__ == "__main__":
    given = sys.argv[1:]
    for kind, folder in zip(given[::2], given[1::2], strict=True):
        build(kind, folder)
