"""RestrictedPython as a linter: would this file pass its subset of Python? Advice, never permission.

RestrictedPython is no boundary (CVE-2026-55830 let code out of its subset, fixed in 8.3), and no ordinary pipeline
passes it: `super().__init__()`, annotated assignments and `obj.x += 1` are outside. What its rules name is still what a
reader should look at first.
"""

from __future__ import annotations

import ast
import importlib
from typing import Any

from wan_compat.policies.scan.rules import Observation

MAX_SHOWN = 5


def read_restricted(tree: ast.Module) -> Observation | None:
    """Return the advice on one file, None where RestrictedPython is not installed.

    The tree is rewritten by its rules and thrown away; it is not compiled.
    """
    try:
        transformer: Any = importlib.import_module("RestrictedPython.transformer")
    except ImportError:
        return None
    errors: list[str] = []
    warnings: list[str] = []
    used: dict[str, str] = {}
    try:
        transformer.RestrictingNodeTransformer(errors, warnings, used).visit(tree)
    except RecursionError:
        return Observation("python-restricted", "RestrictedPython: nested too deeply to be judged")
    if not errors:
        return Observation("python-restricted", "RestrictedPython: within its subset (advice, not permission)")
    shown = "; ".join(dict.fromkeys(errors[:MAX_SHOWN]))
    more = f"; and {len(errors) - MAX_SHOWN} more" if len(errors) > MAX_SHOWN else ""
    return Observation("python-restricted", f"RestrictedPython: outside its subset: {shown}{more}")
