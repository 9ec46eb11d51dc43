"""The header of a numpy file (numpy.lib.format): does it hold plain numbers, or objects, which are a pickle?"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

# Kind and size, as numpy itself writes them. Whatever else numpy may understand ("object", "\x4f8") is not plain.
_PLAIN = re.compile(r"[<>|=]?[?biufcSUVmM]\d*(?:\[\d*\w+\])?")


def data_start(head: bytes) -> int:
    """Return where the data begin: after magic, version, length and header."""
    wide = head[6:7] in (b"\x02", b"\x03")
    return (12 if wide else 10) + int.from_bytes(head[8 : 12 if wide else 10], "little")


def is_plain(header: bytes) -> bool | None:
    """Return whether the array is of numbers and texts only, None where the header says nothing that can be read.

    Args:
        header: The file up to its data.
    """
    start = 12 if header[6:7] in (b"\x02", b"\x03") else 10
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            described = ast.literal_eval(header[start:].decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(described, dict) or "descr" not in described:
        return None
    return _plain(described["descr"], 0)


def _plain(descr: Any, depth: int) -> bool:
    if isinstance(descr, str):
        return _PLAIN.fullmatch(descr) is not None
    if depth > 8:
        return False
    if isinstance(descr, list):  # of fields: (name, type) or (name, type, shape)
        return all(isinstance(field, tuple) and len(field) in (2, 3) and _plain(field[1], depth + 1) for field in descr)
    return isinstance(descr, tuple) and len(descr) == 2 and _plain(descr[0], depth + 1)  # (type, shape)
