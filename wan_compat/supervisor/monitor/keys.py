"""Keys out of the bytes that a terminal sends. Pure: bytes in, names out.

A printable character is its own name; the others are "up", "down", "page_up", "page_down", "home", "end", "enter",
"escape", "backspace", "redraw" (Ctrl-L) and "interrupt" (Ctrl-C, where the terminal does not make it a signal).
Sequences that mean nothing here are dropped whole, so that their letters do nothing.
"""

from __future__ import annotations

import re

# CSI and SS3 sequences: ECMA-48 5.4, and xterm's ctlseqs for which keys send them.
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])")
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?$")
_NAMES = {
    **dict.fromkeys((b"\x1b[A", b"\x1bOA"), "up"),
    **dict.fromkeys((b"\x1b[B", b"\x1bOB"), "down"),
    **dict.fromkeys((b"\x1b[5~",), "page_up"),
    **dict.fromkeys((b"\x1b[6~",), "page_down"),
    **dict.fromkeys((b"\x1b[H", b"\x1bOH", b"\x1b[1~", b"\x1b[7~"), "home"),
    **dict.fromkeys((b"\x1b[F", b"\x1bOF", b"\x1b[4~", b"\x1b[8~"), "end"),
}
_CONTROLS = {
    0x03: "interrupt",
    0x08: "backspace",
    0x0A: "enter",
    0x0C: "redraw",
    0x0D: "enter",
    0x10: "up",  # Ctrl-P and Ctrl-N, as in readline
    0x0E: "down",
    0x15: "clear",
    0x7F: "backspace",
}
MAX_SEQUENCE_BYTES = 64  # a longer one is no key, and is not waited for


def read_keys(data: bytes, *, is_all: bool) -> tuple[list[str], bytes]:
    """Return the keys in `data`, and what may be the beginning of another one.

    Args:
        is_all: Nothing followed for a moment: an escape that stands alone is the key, and no beginning.
    """
    keys: list[str] = []
    while data:
        if data[0] == 0x1B:
            if match := _SEQUENCE.match(data):
                if (name := _NAMES.get(match.group())) is not None:
                    keys.append(name)
                data = data[match.end() :]
                continue
            if _UNFINISHED.match(data) and not is_all and len(data) <= MAX_SEQUENCE_BYTES:
                return keys, data
            # Alone, or before a character (Alt and a key): an escape.
            keys.append("escape")
            data = data[1:]
            continue
        if data[0] < 0x20 or data[0] == 0x7F:
            if (name := _CONTROLS.get(data[0])) is not None:
                keys.append(name)
            data = data[1:]
            continue
        size = 1 if data[0] < 0x80 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
        if len(data) < size and not is_all:
            return keys, data
        char = data[:size].decode("utf-8", "ignore")
        if len(char) == 1 and char.isprintable():
            keys.append(char)
        data = data[size:]
    return keys, b""
