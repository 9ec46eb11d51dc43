"""The content decides what a file is; a name decides only where content has no mark."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.policies.scan.formats import Format, detect, promised, zip_format

SAFETENSORS = struct.pack("<Q", 2) + b"{}"


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (b"", "x", Format.EMPTY),
        (SAFETENSORS, "x.bin", Format.SAFETENSORS),
        (b"GGUF\3\0\0\0" + bytes(16), "x", Format.GGUF),
        (b"PK\3\4" + bytes(40), "model.safetensors", Format.ZIP),
        (pickle.dumps([1], 2), "model.safetensors", Format.PICKLE),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "x.pt", Format.TORCH_LEGACY),
        (b"\x93NUMPY\1\0", "x", Format.NPY),
        (b"\x89HDF\r\n\x1a\n", "x", Format.HDF5),
        (b"\x7fELF\2\1\1", "config.json", Format.ELF),
        (b"MZ" + bytes(60) + b"PE\0\0", "x", Format.PE),
        (b"\xcf\xfa\xed\xfe\7", "x", Format.MACH_O),
        (b"\xa7\x0d\r\n" + bytes(12) + b"\xe3", "x", Format.PYC),
        (b"\x1f\x8b\x08\0", "x", Format.GZIP),
        (b"\x78\x9c\x03\0", "x", Format.ZLIB),
        (b"BZh9\x17\x72\x45", "x", Format.BZIP2),
        (b"\xfd7zXZ\0\0", "x", Format.XZ),
        (b"\x28\xb5\x2f\xfd\0", "x", Format.ZSTD),
        (b"7z\xbc\xaf\x27\x1c\0", "x", Format.SEVEN_ZIP),
        (bytes(257) + b"ustar\0", "x", Format.TAR),
        (b"\x08\x07\x12\x07", "x.onnx", Format.ONNX),
        (b"\x89PNG\r\n\x1a\n\0", "x", Format.IMAGE),
        (b"RIFF\0\0\0\0WEBP", "x", Format.IMAGE),
        (b"\0\0\0\x20ftypisom", "x", Format.VIDEO),
        (b"\x0a\x0e\x0a\x05<pad>\x15\0\0\0\0\x18\3", "spiece.model", Format.SENTENCEPIECE),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "x.safetensors", Format.LFS_POINTER),
        (b"#!/usr/bin/env python3\nx = 1\n", "run", Format.PYTHON),
        (b"#!/bin/sh\nid\n", "run.txt", Format.SCRIPT),
        (b"x = 1\n", "x.py", Format.PYTHON),
        (b"# coding: latin-1\nx = '\xe9'\n", "x.py", Format.PYTHON),
        (b"GIF89a = 1\nimport os\n", "x.py", Format.PYTHON),
        (b"id\n", "x.sh", Format.SCRIPT),
        (b'{"a": 1}', "x", Format.JSON),
        (b"\xef\xbb\xbf[1, 2]", "x.json", Format.JSON),
        (b"[link](https://example.org)\n", "README", Format.TEXT),
        (b"a: 1\n", "x.yaml", Format.YAML),
        (b"{{ x }}", "chat_template.jinja", Format.TEMPLATE),
        ("läuft\n".encode(), "README.md", Format.TEXT),
        (b"\x1b[31mred\x1b[0m", "notes", Format.TEXT),
        (b"\x01\x02\x03", "x", Format.UNKNOWN),
    ],
)  # fmt: skip
def test_format_by_content(head, name, expected):
    assert detect(head, name, len(head)) is expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"archive/data.pkl", "archive/data/0", "archive/version"}, Format.TORCH_ZIP),
        ({"m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"}, Format.TORCHSCRIPT),
        ({"m/archive_format", "m/models/model.json"}, Format.TORCH_EXPORT),
        ({"a.npy", "b.npy"}, Format.NPZ),
        ({"config.json", "metadata.json", "model.weights.h5"}, Format.KERAS),
        ({"a.txt"}, Format.ZIP),
        (set(), Format.ZIP),
    ],
)
def test_zip_by_its_entries(names, expected):
    assert zip_format(frozenset(names)) is expected


def test_names_that_promise_another_content_are_lies():
    assert not promised("model.safetensors", Format.PICKLE)
    assert not promised("picture.png", Format.ZIP)
    assert promised("MODEL.SAFETENSORS", Format.SAFETENSORS)
    assert promised("pytorch_model.bin", Format.TORCH_ZIP)  # promises nothing


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["x", "x.py", "x.json", "x.onnx", "x.pyc"]))
def test_any_bytes_have_a_format(head, name):
    assert detect(head, name, len(head)) in Format
