"""Copies of tiny checkpoints with one thing wrong. Reads and writes safetensors with numpy: no torch needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.assets.tiny_wan import tiny_model


def copy(kind: str, folder: Path) -> Path:
    """Return a copy of a tiny checkpoint that a test may change."""
    target = folder / kind
    shutil.copytree(tiny_model(kind), target)
    return target


def change(model: Path, part: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Let `edit` change the tensors of one part."""
    (path,) = (model / part).glob("*.safetensors")
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def fill(model: Path, part: str, name: str, value: float) -> None:
    change(model, part, lambda tensors: tensors.update({name: np.full_like(tensors[name], value)}))


def configure(model: Path, part: str, **changes: Any) -> None:
    """Change fields of one part's config.json; None removes a field."""
    path = model / part / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
