"""Only arrays of numbers and texts are plain; every other way to write a type may be one of objects."""

from __future__ import annotations

import io

import numpy
import pytest

from wan_compat.policies.scan.numpy_header import data_start, is_plain


def saved(array, **options):
    buffer = io.BytesIO()
    numpy.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def plain(raw):
    return is_plain(raw[: data_start(raw)])


@pytest.mark.parametrize(
    "dtype", ["f4", "i8", "?", "U5", "S3", "c16", "M8[ns]", "u1,f4", [("a", "f4", (2, 3)), ("b", [("c", "i2")])]]
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_numbers_and_texts_are_plain(dtype, version):
    assert plain(saved(numpy.zeros(2, dtype), version=version)) is True


@pytest.mark.parametrize("dtype", ["O", "f4,O", [("a", [("b", "O")])]])
def test_objects_are_not(dtype):
    assert plain(saved(numpy.zeros(2, dtype), allow_pickle=True)) is False


@pytest.mark.parametrize(
    "descr", ["'|O'", '"O8"', "'|\\x4f'", "'object'", "[('a', 'object')]", "('O', (2,))", "'|' 'O'", "5", "None"]
)
def test_other_spellings_are_not(descr):
    header = f"{{'shape': (1,), 'descr': {descr}, 'fortran_order': False}}\n".encode()
    assert plain(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header) is False


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b"{'a': 1}", b"\xff", b"(" * 5000, b"-" * 5000 + b"1", b"__import__('os')"]
)
def test_what_is_no_header_says_nothing(header):
    assert plain(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header) is None
