"""Keys out of bytes, in whatever pieces they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.supervisor.monitor.keys import MAX_SEQUENCE_BYTES, read_keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"jq/", ["j", "q", "/"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[F\x1b[1~\x1b[4~", ["page_up", "page_down", "home", "end", "home", "end"]),
        (b"\r\n\x7f\x08\x0c\x03", ["enter", "enter", "backspace", "backspace", "redraw", "interrupt"]),
        ("ß漢".encode(), ["ß", "漢"]),
        (b"\x1b[200~", []),  # a sequence that means nothing here does nothing, its letters neither
        (b"\x1b[15;2~x", ["x"]),
        (b"\x1bc", ["escape", "c"]),
        (b"\x1b", ["escape"]),
        (b"\x00\x1c\x7f", ["backspace"]),
        (b"\xff\xfe", []),
    ],
)
def test_keys_have_names(data: bytes, keys: list[str]) -> None:
    assert read_keys(data, is_all=True) == (keys, b"")


@pytest.mark.parametrize("data", [b"\x1b", b"\x1b[", b"\x1b[5", b"\x1bO", b"\xe6\xbc"])
def test_the_beginning_of_a_key_is_kept_until_the_rest_comes(data: bytes) -> None:
    assert read_keys(b"j" + data, is_all=False) == (["j"], data)


def test_a_sequence_without_end_is_not_waited_for() -> None:
    _, rest = read_keys(b"\x1b[" + b"1;" * MAX_SEQUENCE_BYTES, is_all=False)
    assert rest == b""


@given(st.binary(max_size=60))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    keys, rest = read_keys(data, is_all=True)
    assert rest == b""
    assert all(len(key) > 1 or key.isprintable() for key in keys)
